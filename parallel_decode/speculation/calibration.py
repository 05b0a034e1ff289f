"""`Calibration`: how often draft nodes turn out right, by what their drafter says of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parallel_decode import _C
from parallel_decode.engine.draft_tree import MAX_NODES, DraftTree

NUM_BINS: int = _C.PROBABILITY_BINS
CENTRES = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
PRIOR = 4.0
"""Observations that a drafter's own estimate counts for in each bin."""
MEMORY = 500.0
"""Nodes after which a third of an old one's weight is left."""


class Judged(NamedTuple):
    """A draft of which is known which nodes were right, those of `path`; deeper ones than `depth`
    are not judged."""

    draft: DraftTree
    path: Sequence[int]
    depth: int = MAX_NODES


class Calibration:
    """Probabilities of paths as drafted -> as they turned out: in each bin the drafter's times how
    often it was right for how often it said so; between two bins what is between.

    Attributes:
        num_tried: nodes that were seen, old ones in part.
        factors: [NUM_BINS]: of each bin, at its middle.
    """

    def __init__(self) -> None:
        self._right = np.zeros(NUM_BINS)
        self._said = np.zeros(NUM_BINS)  # sums of what the drafter said of them
        self.num_tried = 0.0
        self.factors = np.ones(NUM_BINS)

    def note(self, judged: Sequence[Judged]) -> None:
        """What has become of drafts in one step."""
        num_nodes, right, said = _C.judge_drafts(
            [entry.draft.columns for entry in judged],
            [entry.path for entry in judged],
            [entry.depth for entry in judged],
        )
        self.age(math.exp(-num_nodes / MEMORY))
        self._right += right
        self._said += said
        self.num_tried += num_nodes
        self.factors = (self._right + PRIOR * CENTRES) / (self._said + PRIOR * CENTRES)

    def age(self, share: float) -> None:
        """What was seen so far weighs so much of what it did."""
        self._right *= share
        self._said *= share
        self.num_tried *= share
