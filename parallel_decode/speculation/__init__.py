"""Drafters: cheap guesses at the next tokens, which the model verifies many at a time."""

from parallel_decode.speculation.controller import Speculation, SpeculationStats
from parallel_decode.speculation.draft_model import DraftModelDrafter
from parallel_decode.speculation.ngram import NGramDrafter
from parallel_decode.speculation.step_costs import StepCosts
from parallel_decode.speculation.suffix import SuffixDrafter

__all__ = [
    "DraftModelDrafter",
    "NGramDrafter",
    "Speculation",
    "SpeculationStats",
    "StepCosts",
    "SuffixDrafter",
]
