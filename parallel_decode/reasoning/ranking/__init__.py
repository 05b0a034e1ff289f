"""Ranking: independent samples, and a verifier that chooses among them."""

from parallel_decode.reasoning.ranking.best_of_n import BestOfN
from parallel_decode.reasoning.ranking.cascade import Cascade
from parallel_decode.reasoning.ranking.compute_optimal import ComputeOptimal
from parallel_decode.reasoning.ranking.generative_verifier import GenerativeVerifier, LlmJudge
from parallel_decode.reasoning.ranking.knockout import Knockout, PairwiseJudge
from parallel_decode.reasoning.ranking.self_certainty import SelfCertainty, self_certainty
from parallel_decode.reasoning.ranking.verifier import Verifier

__all__ = [
    "BestOfN",
    "Cascade",
    "ComputeOptimal",
    "GenerativeVerifier",
    "Knockout",
    "LlmJudge",
    "PairwiseJudge",
    "SelfCertainty",
    "Verifier",
    "self_certainty",
]
