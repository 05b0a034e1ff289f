"""Drafters guess the next tokens, and the model verifies many guesses at a time."""

from parallel_decode.speculation.controller import Speculation, SpeculationStats
from parallel_decode.speculation.draft_model import DraftModelDrafter
from parallel_decode.speculation.ngram import NGramDrafter
from parallel_decode.speculation.speculate import speculate
from parallel_decode.speculation.step_costs import NoRoomToMeasure, StepCosts
from parallel_decode.speculation.suffix import SuffixDrafter

__all__ = [
    "DraftModelDrafter",
    "NGramDrafter",
    "NoRoomToMeasure",
    "Speculation",
    "SpeculationStats",
    "StepCosts",
    "SuffixDrafter",
    "speculate",
]
