"""Methods over the engine's primitives: each is Π(Q) = (A ∘ P_M ∘ D)(Q)."""

from parallel_decode.reasoning.consistency import SelfConsistency
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.ranking import (
    BestOfN,
    Cascade,
    ComputeOptimal,
    GenerativeVerifier,
    Knockout,
    LlmJudge,
    PairwiseJudge,
    SelfCertainty,
    Verifier,
    self_certainty,
)
from parallel_decode.reasoning.scorer import Scorer, likelihood, mean_logprob
from parallel_decode.reasoning.search import StepBeam
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.template import Template

METHODS: tuple[type[Method], ...] = (
    SelfConsistency,
    BestOfN,
    Cascade,
    ComputeOptimal,
    Knockout,
    SelfCertainty,
    StepBeam,
)

__all__ = [
    "METHODS",
    "BestOfN",
    "Card",
    "Cascade",
    "ComputeOptimal",
    "GenerativeVerifier",
    "Knockout",
    "LlmJudge",
    "Method",
    "PairwiseJudge",
    "Path",
    "Pipeline",
    "Scorer",
    "SelfCertainty",
    "SelfConsistency",
    "Solution",
    "StepBeam",
    "Template",
    "TreeNode",
    "Verifier",
    "likelihood",
    "mean_logprob",
    "self_certainty",
]
