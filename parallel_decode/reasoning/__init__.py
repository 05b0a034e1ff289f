"""Methods over the engine's primitives: each is Π(Q) = (A ∘ P_M ∘ D)(Q)."""

from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, mean_logprob
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.self_consistency import SelfConsistency
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.step_beam import StepBeam

__all__ = [
    "Path",
    "Pipeline",
    "Scorer",
    "SelfConsistency",
    "Solution",
    "StepBeam",
    "TreeNode",
    "mean_logprob",
]
