"""Methods over the engine's primitives: each is Π(Q) = (A ∘ P_M ∘ D)(Q)."""

from parallel_decode.reasoning.consistency import (
    CISC,
    AdaptiveConsistency,
    DeepConf,
    DeepConfOnline,
    DeepPrune,
    Dynasor,
    EarlyStopping,
    PTrue,
    ReadingPrompt,
    SelfConsistency,
    SoftSelfConsistency,
    UniversalSelfConsistency,
)
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.ranking import BestOfN
from parallel_decode.reasoning.scorer import Scorer, likelihood, mean_logprob
from parallel_decode.reasoning.search import StepBeam
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Path, Solution

METHODS: tuple[type[Method], ...] = (
    SelfConsistency,
    CISC,
    UniversalSelfConsistency,
    SoftSelfConsistency,
    AdaptiveConsistency,
    EarlyStopping,
    DeepConf,
    DeepConfOnline,
    Dynasor,
    DeepPrune,
    BestOfN,
    StepBeam,
)

__all__ = [
    "METHODS",
    "CISC",
    "AdaptiveConsistency",
    "BestOfN",
    "Card",
    "DeepConf",
    "DeepConfOnline",
    "DeepPrune",
    "Dynasor",
    "EarlyStopping",
    "Method",
    "PTrue",
    "Path",
    "Pipeline",
    "ReadingPrompt",
    "Scorer",
    "SelfConsistency",
    "SoftSelfConsistency",
    "Solution",
    "StepBeam",
    "TreeNode",
    "UniversalSelfConsistency",
    "likelihood",
    "mean_logprob",
]
