"""Branches over one paged KV pool, and the scheduler that decodes them together."""

from parallel_decode.engine.branch import Branch, Record, Top, View
from parallel_decode.engine.budget import Budget, Usage
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.engine import Engine, Solver
from parallel_decode.engine.executor import Executor, SimulatedExecutor
from parallel_decode.engine.grammar import Grammar
from parallel_decode.engine.interrupted import Interrupted
from parallel_decode.engine.kv_cache import PoolExhausted
from parallel_decode.engine.operation import (
    Broadcast,
    Call,
    Cancel,
    Delegate,
    Extend,
    FirstOf,
    Fork,
    History,
    Join,
    Operation,
    Prefill,
    Prune,
    Recall,
    Release,
    Rollback,
    Score,
    See,
    Seed,
    Shorten,
    Swap,
    Verify,
)
from parallel_decode.engine.program import Program, Steps
from parallel_decode.engine.runner import StepStats
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.speculator import Speculator
from parallel_decode.engine.threads import Threads
from parallel_decode.engine.verification import VerifyRule
from parallel_decode.engine.verified import Verified

__all__ = [
    "Branch",
    "Broadcast",
    "Budget",
    "Call",
    "Cancel",
    "Delegate",
    "DraftRequest",
    "DraftTree",
    "Drafter",
    "Engine",
    "Executor",
    "Extend",
    "FirstOf",
    "Fork",
    "Grammar",
    "History",
    "Interrupted",
    "Join",
    "Operation",
    "PoolExhausted",
    "Prefill",
    "Program",
    "Prune",
    "Recall",
    "Record",
    "Release",
    "Rollback",
    "SamplingParams",
    "Score",
    "See",
    "Seed",
    "Shorten",
    "SimulatedExecutor",
    "Solver",
    "Speculator",
    "StepStats",
    "Steps",
    "Swap",
    "Threads",
    "Top",
    "Usage",
    "Verified",
    "Verify",
    "VerifyRule",
    "View",
]
