"""Structured search: partial solutions grow step by step, are scored, kept or dropped."""

from parallel_decode.reasoning.search.ab_mcts import ABMCTS
from parallel_decode.reasoning.search.action import Action
from parallel_decode.reasoning.search.dvts import DVTS
from parallel_decode.reasoning.search.ets import ETS
from parallel_decode.reasoning.search.forest import Forest
from parallel_decode.reasoning.search.graph_of_thoughts import GraphOfThoughts
from parallel_decode.reasoning.search.mcts import MCTS
from parallel_decode.reasoning.search.particle_filter import ParticleFilter
from parallel_decode.reasoning.search.posterior import BetaPrior, GaussianPrior
from parallel_decode.reasoning.search.rebase import Rebase
from parallel_decode.reasoning.search.self_eval_beam import SelfEvalBeam
from parallel_decode.reasoning.search.self_evaluation import SelfEvaluation
from parallel_decode.reasoning.search.step_beam import StepBeam
from parallel_decode.reasoning.search.stochastic_beam import StochasticBeam
from parallel_decode.reasoning.search.thought_operation import (
    Aggregate,
    Generate,
    KeepBest,
    Refine,
)
from parallel_decode.reasoning.search.tree_of_thoughts import TreeOfThoughts

__all__ = [
    "ABMCTS",
    "DVTS",
    "ETS",
    "MCTS",
    "Action",
    "Aggregate",
    "BetaPrior",
    "Forest",
    "GaussianPrior",
    "Generate",
    "GraphOfThoughts",
    "KeepBest",
    "ParticleFilter",
    "Rebase",
    "Refine",
    "SelfEvalBeam",
    "SelfEvaluation",
    "StepBeam",
    "StochasticBeam",
    "TreeOfThoughts",
]
