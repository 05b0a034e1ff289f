"""A decoding engine for parallel reasoning: many branches over one stored prefix."""

from parallel_decode.engine import (
    Branch,
    Broadcast,
    Budget,
    Delegate,
    Engine,
    Extend,
    FirstOf,
    Fork,
    Join,
    PoolExhausted,
    Prefill,
    Prune,
    Rollback,
    SamplingParams,
    Score,
    See,
    Usage,
)
from parallel_decode.reasoning import (
    BestOfN,
    Pipeline,
    SelfConsistency,
    Solution,
    StepBeam,
    Verifier,
)

__all__ = [
    "BestOfN",
    "Branch",
    "Broadcast",
    "Budget",
    "Delegate",
    "Engine",
    "Extend",
    "FirstOf",
    "Fork",
    "Join",
    "Pipeline",
    "PoolExhausted",
    "Prefill",
    "Prune",
    "Rollback",
    "SamplingParams",
    "Score",
    "See",
    "SelfConsistency",
    "Solution",
    "StepBeam",
    "Usage",
    "Verifier",
    "__version__",
]

__version__ = "0.1.0"
