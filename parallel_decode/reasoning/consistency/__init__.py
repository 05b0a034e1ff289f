"""Self-consistency and its kin: independent samples, and a vote."""

from parallel_decode.reasoning.consistency.self_consistency import SelfConsistency

__all__ = ["SelfConsistency"]
