"""Drafters guess the next tokens, and the model verifies many guesses at a time."""

from parallel_decode.speculation.controller import Speculation, SpeculationStats
from parallel_decode.speculation.draft_model import DraftModelDrafter
from parallel_decode.speculation.eagle import EagleDrafter
from parallel_decode.speculation.layer_choice import LayerChoice, choose_layers
from parallel_decode.speculation.lookahead import LookaheadDrafter
from parallel_decode.speculation.medusa import MedusaDrafter
from parallel_decode.speculation.ngram import NGramDrafter
from parallel_decode.speculation.skip_layers import SkipLayersDrafter
from parallel_decode.speculation.speculate import speculate
from parallel_decode.speculation.static import StaticSpeculation
from parallel_decode.speculation.step_costs import NoRoomToMeasure, StepCosts
from parallel_decode.speculation.suffix import SuffixDrafter
from parallel_decode.speculation.trained_heads import TrainedHeads

__all__ = [
    "DraftModelDrafter",
    "EagleDrafter",
    "LayerChoice",
    "LookaheadDrafter",
    "MedusaDrafter",
    "NGramDrafter",
    "NoRoomToMeasure",
    "SkipLayersDrafter",
    "Speculation",
    "SpeculationStats",
    "StaticSpeculation",
    "StepCosts",
    "SuffixDrafter",
    "TrainedHeads",
    "choose_layers",
    "speculate",
]
