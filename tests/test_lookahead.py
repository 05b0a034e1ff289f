"""The window and the pool of lookahead decoding, against a plain simulation of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.engine import Branch, DraftRequest, DraftTree, SamplingParams, Verified
from parallel_decode.engine.branch import GIVEN
from parallel_decode.engine.draft_tree import walk
from parallel_decode.speculation import LookaheadDrafter, Speculation, StepCosts
from tests.test_scheduler import decoding
from tests.test_speculation import token_ids
from tests.tiny_model import tiny_engine

POOL = _C.BlockPool(4)


def root(tokens) -> Branch:
    return Branch(tokens, _C.BlockTable(POOL), lambda ids: "")


def proposed(drafter: LookaheadDrafter, branch: Branch, limit: int = 63) -> DraftTree:
    [tree] = drafter.propose([DraftRequest(branch, SamplingParams(), 0)], [limit])
    return tree


def next_token(tokens: list[int]) -> int:
    """A model that looks at two tokens."""
    return (3 * tokens[-1] + 5 * tokens[-2] + 1) % 11


def verify(drafter: LookaheadDrafter, branch: Branch, tree: DraftTree) -> int:
    """As the engine does -> tokens that the branch got."""
    drawn = [next_token([*branch.tokens, *tree.path_to(node)]) for node in range(-1, len(tree))]
    [path] = walk([tree], np.array(drawn))
    for node in (-1, *path):
        branch.push(drawn[1 + node], GIVEN)
    drafter.learn([Verified(branch, tree, path, np.array(drawn))])
    return 1 + len(path)


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """Those that end in a leaf."""
    parents = set(tree.parents.tolist())
    return {tuple(tree.path_to(node)) for node in range(len(tree)) if node not in parents}


def test_the_window_is_what_was_said_step_by_step():
    """Columns and n-grams of a simulation with one dictionary a step."""
    width, n = 4, 3
    drafter = LookaheadDrafter(width, n, max_guesses=3)
    branch = root([1, 2, 3, 4, 5])
    # Rows that nobody has said yet are filled from the text.
    steps: list[dict[int, int]] = [{} for _ in range(n - 1)]
    pool: dict[int, list[tuple[int, ...]]] = {}
    for _ in range(12):
        tree = proposed(drafter, branch)
        begin, recent = branch.num_tokens, branch.recent(min(branch.num_tokens, 4 * width))
        chain, columns = [], []
        for j in range(width):
            guesses = [
                row.setdefault(begin + j + r, recent[(begin + j + r) % len(recent)])
                for r, row in enumerate(steps[-(n - 1) :])
            ]
            chain.append(guesses[0])
            columns.append((*chain, *guesses[1:]))
        guessed = pool.get(branch.tokens[-1], [])[-3:]
        expected = {*columns, *guessed}
        whole = {p for p in expected if not any(p != q and p == q[: len(p)] for q in expected)}
        assert paths(tree) == whole
        said = {}
        for j, column in enumerate(columns):
            token = next_token([*branch.tokens, *column])
            said[begin + j + n - 1] = token
            known = pool.setdefault(column[j], [])
            if (*column[j + 1 :], token) in known:
                known.remove((*column[j + 1 :], token))
            known.append((*column[j + 1 :], token))
            del known[:-3]
        steps.append(said)
        verify(drafter, branch, tree)


def test_jacobi_iteration_needs_no_more_steps_than_tokens():
    """It settles at least one token a step, and what the whole window has settled on comes at
    once."""
    drafter = LookaheadDrafter(window=6, n=2, max_guesses=0)
    branch = root([1, 2])
    counts = [verify(drafter, branch, proposed(drafter, branch)) for _ in range(40)]
    plain = [1, 2]
    while len(plain) < branch.num_tokens:
        plain.append(next_token(plain))
    assert branch.tokens == plain
    assert drafter.num_ngrams == 0 and sum(counts) > len(counts)


def test_a_window_settles_where_tokens_do_not_hang_on_each_other():
    """All of it is right from the second step on, with a model that looks at places alone."""
    drafter = LookaheadDrafter(window=5, n=2, max_guesses=0)
    branch = root([7])
    counts = []
    for _ in range(10):
        tree = proposed(drafter, branch)
        drawn = [(branch.num_tokens + depth) ** 2 % 10 for depth in (0, *tree.depths.tolist())]
        [path] = walk([tree], np.array(drawn))
        counts.append(len(path))
        for node in (-1, *path):
            branch.push(drawn[1 + node], GIVEN)
        drafter.learn([Verified(branch, tree, path, np.array(drawn))])
    # What is behind the window was never guessed, and the places of those are filled.
    assert counts[1] == 5 and sum(counts) > len(counts)


def test_a_window_that_is_cut_learns_what_is_left():
    drafter = LookaheadDrafter(window=4, n=3)
    branch = root([1, 2, 3])
    whole = proposed(drafter, branch)
    verify(drafter, branch, whole.cut(1))
    assert drafter.num_ngrams == 0
    verify(drafter, branch, proposed(drafter, branch).cut(0))
    assert drafter.num_ngrams == 0
    verify(drafter, branch, proposed(drafter, branch))
    assert drafter.num_ngrams > 0


@given(
    st.integers(1, 8),
    st.integers(2, 5),
    st.integers(0, 8),
    st.integers(0, 63),
    st.lists(st.integers(0, 10), min_size=0, max_size=5),
)
def test_drafts_are_trees(window, n, max_guesses, limit, tokens):
    drafter = LookaheadDrafter(window, n, max_guesses)
    branch = root(tokens)
    for _ in range(6):
        tree = proposed(drafter, branch, limit)
        DraftTree.of(tree.tokens, tree.parents, tree.probabilities)
        assert len(tree) <= limit
        pairs = list(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        branch.push(1, GIVEN)
        branch.push(2, GIVEN)
        verify(drafter, branch, proposed(drafter, branch, limit))


def test_the_pool_is_bounded():
    drafter = LookaheadDrafter(window=6, n=3, max_guesses=2, max_ngrams=5)
    branch = root([1, 2, 3])
    for _ in range(50):
        verify(drafter, branch, proposed(drafter, branch))
        assert drafter.num_ngrams == sum(map(len, drafter._pool.values())) <= 5
        assert all(0 < len(known) <= 2 for known in drafter._pool.values())


def test_windows_go_with_their_branches():
    drafter = LookaheadDrafter()
    branch, other = root([1, 2]), root([3, 4])
    proposed(drafter, branch)
    proposed(drafter, other)
    drafter.forget(branch)
    assert list(drafter._windows) == [other]
    del other
    assert len(drafter._windows) == 0


def test_a_sampled_window_settles_too():
    """Places draw with the branch's own random numbers: with independent ones about one guess in
    the size of the vocabulary would be right."""
    engine = tiny_engine()
    drafter = LookaheadDrafter(window=8, n=3)
    engine.speculator = Speculation(drafter, StepCosts([1, 64], [1.0, 1.0]))
    kids = engine.fork(engine.prefill(token_ids(20)), 4)
    engine.extend(kids, decoding(60))
    stats = engine.speculator.stats
    assert stats.tokens_per_step > 1.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "got 0, "),
        ({"n": 1}, "got 7, 32768, 1 and 7"),
        ({"max_guesses": -1}, "and -1"),
        ({"max_ngrams": 0}, "got 7, 0, "),
        ({"window": 16}, "a window has 16 x 4 nodes, a draft has at most 63"),
    ],
    ids=str,
)
def test_bad_lookahead_drafters(arguments, message):
    with pytest.raises(ValueError, match=message):
        LookaheadDrafter(**arguments)
