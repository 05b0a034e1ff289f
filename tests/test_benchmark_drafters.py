"""`benchmarks.drafters` and `benchmarks.suffix_index`: what they count, and what they refuse."""

import pytest

from benchmarks.drafters import num_right, replay
from benchmarks.suffix_index import check_counts, filled, measure
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.speculation import NGramDrafter, SuffixDrafter


@pytest.mark.parametrize(
    ("tokens", "right"),
    [([], 0), ([9], 0), ([5], 1), ([5, 8, 4], 2), ([6, 7], 2), ([6, 8], 1), ([5, 7, 1], 3)],
)
def test_what_is_right_of_a_tree(tokens, right):
    assert num_right(DraftTree.of([5, 6, 7, 8, 7, 1], [-1, -1, 0, 0, 1, 2]), tokens) == right


def test_a_replay_says_every_token_once():
    requests = [([1, 2], [[3, 4, 5, 6, 7], [3, 4, 5, 6, 7]]), ([1, 2], [[3, 4, 5, 6, 7], []])]
    row = replay(SuffixDrafter(unseen=0.0), requests)
    # Two siblings in step draft nothing for each other; the third has all it needs at once.
    assert row["tokens"] == 15
    assert row["tokens_per_step"] == 15 / (5 + 5 + 1)
    assert row["right_per_step"] == 4 / 11
    assert replay(NGramDrafter(), [([0], [[1, 2, 1, 2, 1, 2]])])["tokens_per_step"] == 6 / 4


def test_wrong_counts_are_refused():
    tokens = [1, 2, 1, 3, 1]
    index, stream, _ = filled(tokens, 100)
    check_counts(index, stream, tokens)
    with pytest.raises(AssertionError, match="a context of 1 tokens is followed by"):
        check_counts(index, stream, [1, 4, 1, 3, 1])


def test_a_row_has_its_figures():
    row = measure("few", [1, 2, 3, 4] * 50, repeats=1)
    assert row["tokens"] == 200 and 0 < row["draft_nodes"] <= 64
    assert all(value > 0 for key, value in row.items() if key != "stream")
