"""Edit distances between all pairs of token sequences."""

from collections.abc import Hashable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C


def edit_distances(sequences: Sequence[Sequence[Hashable]]) -> NDArray[np.int64]:
    """[n, n] insertions, deletions and replacements between each two (Levenshtein)."""
    tokens = list(chain.from_iterable(sequences))
    symbols = {token: symbol for symbol, token in enumerate(dict.fromkeys(tokens))}
    distances: NDArray[np.int64] = _C.edit_distances(
        np.array([symbols[token] for token in tokens], np.int32),
        [len(sequence) for sequence in sequences],
        len(symbols),
    )
    return distances


def normalised_edit_distances(sequences: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """[n, n] edit distances by the length of the longer of the two: 0 is the same, 1 nothing in
    common."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    longer = np.maximum(np.maximum.outer(lengths, lengths), 1)
    shares: NDArray[np.float64] = edit_distances(sequences) / longer
    return shares
