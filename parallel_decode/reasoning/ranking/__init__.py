"""Ranking: independent samples, and a verifier that chooses among them."""

from parallel_decode.reasoning.ranking.best_of_n import BestOfN

__all__ = ["BestOfN"]
