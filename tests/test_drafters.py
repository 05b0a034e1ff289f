"""Draft trees, and the drafters over real branches."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.engine.branch import GIVEN, Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.speculation import NGramDrafter, SuffixDrafter

# ---- trees ----


@st.composite
def trees(draw) -> DraftTree:
    size = draw(st.integers(0, 63))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    probabilities = [draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])) for _ in range(size)]
    return DraftTree.of(range(size), parents, probabilities)


def path(tree: DraftTree, node: int) -> list[int]:
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = int(tree.parents[node])
    return nodes[::-1]


@given(trees())
def test_what_a_node_sees_is_its_path(tree):
    for node in range(len(tree)):
        nodes = path(tree, node)
        assert tree.depths[node] == len(nodes)
        assert [j for j in range(64) if int(tree.masks[node]) >> j & 1] == nodes
        assert tree.path_probabilities[node] == np.prod(tree.probabilities[nodes])
    assert tree.masks.dtype == np.uint64 and tree.depths.dtype == np.int32


@given(trees(), st.integers(0, 70))
def test_a_cut_keeps_the_most_probable_paths(tree, max_nodes):
    cut = tree.cut(max_nodes)
    kept = cut.tokens.tolist()  # each token is its node's number
    assert kept == sorted(kept) and len(kept) == min(max_nodes, len(tree))
    order = sorted(range(len(tree)), key=lambda node: (-tree.path_probabilities[node], node))
    assert kept == sorted(order[:max_nodes])
    for number, node in enumerate(kept):
        assert [kept[i] for i in path(cut, number)] == path(tree, node)
        assert cut.probabilities[number] == tree.probabilities[node]


def test_a_kept_node_needs_its_parent():
    tree = DraftTree.of([5, 6, 7], [-1, 0, -1])
    kept = tree.keep(np.array([True, False, True]))
    assert (kept.tokens.tolist(), kept.parents.tolist()) == ([5, 7], [-1, -1])
    with pytest.raises(ValueError, match="node 0 has children that are kept"):
        tree.keep(np.array([False, True, True]))
    with pytest.raises(ValueError, match="kept must have a bool for each of 3 nodes, got 2"):
        tree.keep(np.array([True, True]))
    with pytest.raises(ValueError, match="max_nodes must be 0 or more, got -1"):
        tree.cut(-1)


def test_chains():
    chain = DraftTree.chain([7, 8, 9])
    assert chain.parents.tolist() == [-1, 0, 1] and chain.probabilities.tolist() == [1, 1, 1]
    assert chain.masks.tolist() == [1, 3, 7]
    empty = DraftTree.chain([])
    assert len(empty) == 0 and len(empty.masks) == len(empty.depths) == len(empty.cut(0)) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, 2], [-1, 1], [1, 1]), "node 1 can't be a child of node 1"),
        (([1], [-2], [1]), "node 0 can't be a child of node -2"),
        (([-4], [-1], [1]), "node 0 has token -4"),
        (([4], [-1], [1.5]), "node 0 has probability 1.5"),
        (([4], [-1], [float("nan")]), "node 0 has probability nan"),
        (([4], [-1, -1], [1]), "a draft of 1 tokens has 2 parents and 1 probabilities"),
        ((range(64), range(-1, 63), [1] * 64), "at most 63 nodes, got 64"),
    ],
)
def test_bad_trees(columns, message):
    with pytest.raises(ValueError, match=message):
        DraftTree.of(*columns)


# ---- branches ----

POOL = _C.BlockPool(4)


def root(tokens) -> Branch:
    return Branch(tokens, _C.BlockTable(POOL), lambda ids: "")


def fork(branch: Branch, at: int | None = None) -> Branch:
    base = branch if at is None else branch.view(at)
    return branch.child(base, branch.name_children(1))


def say(branch: Branch, *tokens: int) -> Branch:
    for token in tokens:
        branch.push(token, GIVEN)
    return branch


def asked(*branches: Branch) -> list[DraftRequest]:
    return [DraftRequest(branch, SamplingParams(), 0) for branch in branches]


def proposed(drafter, branch: Branch, max_nodes: int = 63) -> list[int]:
    [tree] = drafter.propose(asked(branch), [max_nodes])
    return tree.tokens.tolist()


@pytest.mark.parametrize("drafter", [SuffixDrafter(), NGramDrafter()], ids=["suffix", "ngram"])
def test_nothing_is_known_of_nothing(drafter):
    assert drafter.propose([], []) == []
    for tokens in ([], [1], [1, 2]):
        assert proposed(drafter, root(tokens)) == []
    assert proposed(drafter, root([3, 4, 3]), 0) == []
    drafter.forget(root([1]))
    with pytest.raises(ValueError):
        drafter.propose(asked(root([1])), [])


@pytest.mark.parametrize("drafter", [SuffixDrafter(), NGramDrafter()], ids=["suffix", "ngram"])
def test_drafts_follow_the_branch(drafter):
    """Through growth, rollback past what was seen, and new tokens in the old ones' place."""
    branch = root([1, 2, 3, 4, 5, 1, 2])
    assert proposed(drafter, branch, 3) == [3, 4, 5]
    assert proposed(drafter, say(branch, 9), 3) == []
    branch.truncate(6)
    drafter.observe(branch)
    drafter.observe(branch)
    assert proposed(drafter, say(branch, 2), 3) == [3, 4, 5]
    branch.truncate(3)
    drafter.observe(branch)
    assert proposed(drafter, say(branch, 8, 7, 6, 8), 2) == [7, 6]
    assert proposed(drafter, say(branch, 4), 2) == []


class CountingBranch(Branch):
    """Counts how many of its tokens are read."""

    num_read = 0

    def recent(self, limit: int) -> list[int]:
        self.num_read += limit
        return super().recent(limit)


@pytest.mark.parametrize("drafter", [SuffixDrafter(), NGramDrafter()], ids=["suffix", "ngram"])
def test_only_new_tokens_are_read(drafter):
    branch = CountingBranch(range(100), _C.BlockTable(POOL), lambda ids: "")
    for token in range(20):
        drafter.propose(asked(say(branch, token)), [4])
        drafter.observe(branch)
    assert branch.num_read == 120


# ---- suffix decoding ----


@given(st.lists(st.lists(st.integers(0, 2), max_size=30), max_size=6), st.integers(0, 63))
def test_suffix_drafts_are_trees(requests, max_nodes):
    """They are made without a check."""
    trees = SuffixDrafter(min_prob=0.0).propose(
        asked(*map(root, requests)), [max_nodes] * len(requests)
    )
    for tree in trees:
        DraftTree.of(tree.tokens, tree.parents, tree.probabilities)
        assert len(tree) <= max_nodes


def test_siblings_draft_for_each_other():
    drafter = SuffixDrafter()
    prompt = root([1, 2, 3])
    ahead, behind = fork(prompt), fork(prompt)
    drafter.propose(asked(say(ahead, 20, 21, 22), behind), [0, 0])
    assert proposed(drafter, behind) == [20, 21, 22]
    assert proposed(drafter, say(behind, 9, 20)) == [21, 22]


def test_siblings_of_one_call_are_all_seen():
    drafter = SuffixDrafter()
    prompt = root([1, 2, 3])
    behind, ahead = fork(prompt), fork(prompt)
    say(ahead, 20, 21, 22)
    first, _ = drafter.propose(asked(behind, ahead), [8, 8])
    assert first.tokens.tolist() == [20, 21, 22]


def test_past_requests_draft_until_newer_tokens_come():
    drafter = SuffixDrafter(max_tokens=20)
    past = root([5, 6, 7, 8])
    drafter.observe(past)
    drafter.forget(past)
    del past
    assert proposed(drafter, root([5, 6])) == [7, 8]
    drafter.observe(root([9] * 20))
    assert proposed(drafter, root([5, 6])) == []


def test_a_prefix_is_stored_once():
    drafter = SuffixDrafter()
    prompt = root(range(100))
    middle = fork(prompt, 50)
    say(middle, 7)
    kids = [say(fork(middle), 8, 9) for _ in range(4)]
    middle.release()
    # Neither the prompt nor the branch between was observed.
    drafter.propose(asked(*kids), [4] * 4)
    assert drafter.index.num_stored == 100 + 1 + 4 * 2
    say(middle, 1, 2)  # observed late: the child sees it before it is asked for
    drafter.observe(fork(middle))
    assert drafter.index.num_stored == 100 + 3 + 4 * 2


def test_probabilities_are_frequencies_among_siblings():
    drafter = SuffixDrafter(unseen=0.0)
    prompt = root([1, 2, 3])
    kids = [say(fork(prompt), token, 30) for token in (20, 20, 20, 21)]
    drafter.propose(asked(*kids), [0] * 4)
    [tree] = drafter.propose(asked(fork(prompt)), [63])
    assert tree.tokens.tolist() == [20, 30, 21, 30]
    assert tree.parents.tolist() == [-1, 0, -1, 2]
    assert tree.probabilities.tolist() == [0.75, 1.0, 0.25, 1.0]


def test_streams_end_with_their_branches():
    drafter = SuffixDrafter()
    branch = root([1, 2, 3])
    for _ in range(2000):  # no call may go as deep as this
        branch = fork(branch)
    drafter.observe(branch)
    assert drafter.index.num_streams == 2001
    del branch
    gc.collect()
    assert (drafter.index.num_streams, drafter.index.num_stored) == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_prob": 2.0}, "min_prob"),
        ({"factor": -1.0}, "factor"),
        ({"unseen": -1.0}, "unseen"),
        ({"max_continuations": 0}, "max_continuations"),
    ],
)
def test_bad_suffix_drafters(arguments, message):
    with pytest.raises(ValueError, match=message):
        SuffixDrafter(**arguments)


# ---- prompt lookup ----


def looked_up(tokens: list[int], max_n: int, limit: int) -> list[int]:
    for n in range(min(max_n, len(tokens) - 1), 0, -1):
        begins = [e for e in range(n, len(tokens)) if tokens[e - n : e] == tokens[-n:]]
        if begins:
            whole = [begin for begin in begins if begin + limit <= len(tokens)]
            begin = whole[-1] if whole else begins[0]
            return tokens[begin : begin + limit]
    return []


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 63),
)
def test_the_longest_match_is_copied(tokens, max_n, num_tokens, max_nodes):
    [tree] = NGramDrafter(max_n, num_tokens).propose(asked(root(tokens)), [max_nodes])
    assert tree.tokens.tolist() == looked_up(tokens, max_n, min(num_tokens, max_nodes))
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))


@pytest.mark.parametrize("arguments", [(0, 10), (3, 0)])
def test_bad_ngram_drafters(arguments):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        NGramDrafter(*arguments)
