"""How much samples of one question differ: in their answers, their tokens, their hidden states."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parallel_decode.reasoning.metrics.edit_distance import normalised_edit_distances


def distinct_answers(answers: Sequence[str | None]) -> int:
    """How many there are; None is no answer."""
    return len({answer for answer in answers if answer is not None})


def answer_entropy(answers: Sequence[str | None]) -> float:
    """Entropy of the answers as they were given, in nats, None left out; 0 where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    total = counts.total()
    return math.fsum(n / total * math.log(total / n) for n in counts.values())


def pairwise_agreement(answers: Sequence[str | None]) -> float:
    """Share of pairs of samples with the same answer, in [0, 1]; None agrees with nothing."""
    counts = Counter(answer for answer in answers if answer is not None)
    return sum(math.comb(n, 2) for n in counts.values()) / _num_pairs(len(answers))


def effective_sample_size(answers: Sequence[str | None], chance: float = 0.0) -> float:
    """n / (1 + (n - 1) ρ), the independent samples that n alike ones are worth (Kish, 1965).

    Args:
        answers: of n samples of one question.
        chance: agreement of samples that do not depend on each other; ρ is what the agreement of
            pairs has above it, (agreement - chance) / (1 - chance), and not below 0.
    """
    if not 0 <= chance < 1:
        raise ValueError(f"chance must be in [0, 1), got {chance}")
    rho = max(0.0, (pairwise_agreement(answers) - chance) / (1 - chance))
    return len(answers) / (1 + (len(answers) - 1) * rho)


def mean_edit_distance(sequences: Sequence[Sequence[int]]) -> float:
    """Mean over pairs of the edit distance of their tokens by the longer length, in [0, 1]."""
    pairs = _num_pairs(len(sequences))
    return float(np.triu(normalised_edit_distances(sequences), 1).sum()) / pairs


def first_divergence(sequences: Sequence[Sequence[int]]) -> float:
    """Mean over pairs of the number of tokens before the first that differs; all of them for two
    that are the same."""
    lengths = np.array([len(sequence) for sequence in sequences])
    return float(np.minimum(_common_prefixes(sequences), _of_pairs(lengths)).mean())


def prefix_overlap(sequences: Sequence[Sequence[int]]) -> list[float]:
    """Share of pairs whose first d tokens are the same, for d = 1 up to the longest length. One
    that has ended is the same as another only where that has ended, too."""
    common = _common_prefixes(sequences)
    longest = max(map(len, sequences))
    reached = np.bincount(common, minlength=longest + 1)[: longest + 1]
    overlap: list[float] = (reached[::-1].cumsum()[::-1][1:] / len(common)).tolist()
    return overlap


def mean_cosine(vectors: ArrayLike) -> float:
    """Mean cosine over pairs of rows of [n, dim], such as the hidden states that
    `Score(branches, head=lambda hidden: hidden)` gives; in [-1, 1]."""
    rows = np.asarray(vectors, np.float64)
    pairs = _num_pairs(len(rows))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ValueError("vectors must be finite and not zero")
    rows = rows / norms
    return float(np.triu(rows @ rows.T, 1).sum()) / pairs


def _num_pairs(size: int) -> int:
    if size < 2:
        raise ValueError(f"at least 2 samples make a pair, got {size}")
    return math.comb(size, 2)


def _of_pairs(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The shorter length of each pair."""
    i, j = np.triu_indices(len(lengths), 1)
    shorter: NDArray[np.int64] = np.minimum(lengths[i], lengths[j])
    return shorter


def _common_prefixes(sequences: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Tokens before the first difference of each pair; the longest length for two that are the
    same. In the order of `np.triu_indices`."""
    _num_pairs(len(sequences))
    longest = max(map(len, sequences))
    # The column after the longest ends the search; -1 is no token.
    table = np.full((len(sequences), longest + 1), -1, np.int64)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence)] = sequence
    common = []
    for number in range(len(table) - 1):
        differs = table[number + 1 :] != table[number]
        differs[:, longest] = True
        common.append(differs.argmax(axis=1))
    return np.concatenate(common)
