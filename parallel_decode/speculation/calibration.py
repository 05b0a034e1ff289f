"""`Calibration`: how often draft nodes turn out right, by what their drafter says of them."""

import math

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C

NUM_BINS: int = _C.PROBABILITY_BINS
CENTRES = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
PRIOR = 4.0
"""Observations that a drafter's own estimate counts for in each bin."""
MEMORY = 500.0
"""Nodes after which a third of an old one's weight is left."""


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

    def note(self, said: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        """Nodes [num_nodes] of one step are judged: what was said of their paths, and 1 where a
        path was right, else 0."""
        bins = np.minimum((said * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self.age(math.exp(-len(said) / MEMORY))
        self._right += np.bincount(bins, right, NUM_BINS)
        self._said += np.bincount(bins, said, NUM_BINS)
        self.num_tried += len(said)
        self.factors = (self._right + PRIOR * CENTRES) / (self._said + PRIOR * CENTRES)

    def age(self, share: float) -> None:
        """What was seen so far weighs so much of what it did."""
        self._right *= share
        self._said *= share
        self.num_tried *= share
