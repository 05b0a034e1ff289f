"""Edit distances between all pairs of token sequences, by bits of whole numbers.

Myers (1999) keeps a column of the dynamic program as two bit vectors: the rows where it rises by
one (VP) and where it falls by one (VN). A token of the text moves it on by a few operations
(Hyyrö, 2003), with Eq the rows whose token is that one:

    D0 = (((Eq & VP) + VP) ^ VP) | Eq | VN      HP = VN | ~(D0 | VP)        HN = D0 & VP
    VP = (HN << 1) | ~(D0 | (HP << 1 | 1))      VN = D0 & (HP << 1 | 1)

Here the columns of all sequences stand side by side in one Python integer, each with one bit more
that is always 0 and takes its carry. A text of n tokens is then n + |VP| - |VN| away from each.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def edit_distances(sequences: Sequence[Sequence[Hashable]]) -> NDArray[np.int64]:
    """[n, n] insertions, deletions and replacements between each two (Levenshtein)."""
    size = len(sequences)
    distances = np.zeros((size, size), np.int64)
    starts = np.cumsum([0, *(len(sequence) + 1 for sequence in sequences)]).tolist()
    rows = _rows(sequences)
    fields = first = 0
    for number, text in enumerate(sequences):
        if number:
            # `fields` and `first` are of the sequences before this one; so is what is kept of Eq.
            rises, falls = _last_column(text, rows, fields, first)
            width = starts[number]
            up, down = _bits(rises, width), _bits(falls, width)
            net = np.add.reduceat(up - down, starts[:number])
            distances[number, :number] = distances[:number, number] = len(text) + net
        fields |= ((1 << len(text)) - 1) << starts[number]
        # An empty sequence has no row that the step from above could enter.
        first |= (1 if text else 0) << starts[number]
    return distances


def _rows(sequences: Sequence[Sequence[Hashable]]) -> dict[Hashable, int]:
    """Token -> where it stands, in all sequences side by side."""
    places: dict[Hashable, list[int]] = {}
    start = 0
    for sequence in sequences:
        for offset, token in enumerate(sequence):
            places.setdefault(token, []).append(start + offset)
        start += len(sequence) + 1
    packed = {}
    for token, bits in places.items():
        flags = np.zeros(start, np.uint8)
        flags[bits] = 1
        packed[token] = int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
    return packed


def _last_column(
    text: Sequence[Hashable], rows: dict[Hashable, int], fields: int, first: int
) -> tuple[int, int]:
    """Where the last column rises and falls, for all sequences in `fields` at once."""
    rises, falls = fields, 0
    for token in text:
        equal = rows[token] & fields
        diagonal = ((((equal & rises) + rises) ^ rises) | equal | falls) & fields
        up = falls | (fields & ~(diagonal | rises))
        from_above = (up << 1) & fields | first
        rises, falls = (
            ((diagonal & rises) << 1) & fields | (fields & ~(diagonal | from_above)),
            diagonal & from_above,
        )
    return rises, falls


def _bits(number: int, width: int) -> NDArray[np.int64]:
    data = np.frombuffer(number.to_bytes(-(-width // 8), "little"), np.uint8)
    return np.unpackbits(data, count=width, bitorder="little").astype(np.int64)


def normalised_edit_distances(sequences: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """[n, n] edit distances by the length of the longer of the two: 0 is the same, 1 nothing in
    common."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    longer = np.maximum(np.maximum.outer(lengths, lengths), 1)
    shares: NDArray[np.float64] = edit_distances(sequences) / longer
    return shares
