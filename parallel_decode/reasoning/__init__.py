"""Methods over the engine's primitives: each is Π(Q) = (A ∘ P_M ∘ D)(Q)."""

from parallel_decode.reasoning.checkpoint import Checkpoint
from parallel_decode.reasoning.consistency import SelfConsistency
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.ranking import BestOfN
from parallel_decode.reasoning.resumable import Resumable
from parallel_decode.reasoning.scorer import Scorer, likelihood, mean_logprob
from parallel_decode.reasoning.search import (
    ABMCTS,
    DVTS,
    ETS,
    MCTS,
    Action,
    Aggregate,
    BetaPrior,
    Forest,
    GaussianPrior,
    Generate,
    GraphOfThoughts,
    KeepBest,
    ParticleFilter,
    Rebase,
    Refine,
    SelfEvalBeam,
    SelfEvaluation,
    StepBeam,
    StochasticBeam,
    TreeOfThoughts,
)
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Path, Solution

METHODS: tuple[type[Method], ...] = (
    SelfConsistency,
    BestOfN,
    StepBeam,
    ABMCTS,
    DVTS,
    ETS,
    Forest,
    GraphOfThoughts,
    MCTS,
    ParticleFilter,
    Rebase,
    SelfEvalBeam,
    StochasticBeam,
    TreeOfThoughts,
)

__all__ = [
    "ABMCTS",
    "DVTS",
    "ETS",
    "MCTS",
    "METHODS",
    "BestOfN",
    "Card",
    "Checkpoint",
    "Forest",
    "GraphOfThoughts",
    "Method",
    "ParticleFilter",
    "Path",
    "Pipeline",
    "Rebase",
    "Resumable",
    "Scorer",
    "SelfConsistency",
    "SelfEvalBeam",
    "Solution",
    "StepBeam",
    "StochasticBeam",
    "TreeNode",
    "Action",
    "Aggregate",
    "BetaPrior",
    "GaussianPrior",
    "Generate",
    "KeepBest",
    "Refine",
    "SelfEvaluation",
    "TreeOfThoughts",
    "likelihood",
    "mean_logprob",
]
