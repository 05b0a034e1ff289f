"""Efficiency at the level of steps and candidates. Not lossless: results change, with the cost."""

from parallel_decode.reasoning.efficiency.spec_reason import SpecReason
from parallel_decode.reasoning.efficiency.speculative_rejection import SpeculativeRejection

__all__ = ["SpecReason", "SpeculativeRejection"]
