"""The definition of acceptance, case by case: batches, broken rows, greedy drafts, moved KV."""

import numpy as np
import pytest
import torch

from parallel_decode.kernels import ReferenceOps
from parallel_decode.kernels.acceptance import (
    Acceptance,
    compact_kv,
    verify_chain,
    verify_greedy,
    verify_tree,
)
from parallel_decode.kernels.plan import BLOCK_SIZE
from tests.draft_batch import DraftBatch, random_batch


def verify(batch: DraftBatch, replacement: bool = True) -> Acceptance:
    return verify_tree(
        batch.p,
        batch.q,
        batch.draft_tokens,
        batch.parents,
        batch.cu_nodes,
        batch.keys,
        batch.positions,
        replacement,
        batch.deterministic,
        max_depth=8,
    )


@pytest.mark.parametrize("replacement", [True, False])
def test_a_branch_decides_the_same_alone_and_in_any_batch(replacement):
    batch = random_batch(0, [3, 0, 8, 5, 1], 6)
    together = verify(batch, replacement)
    assert len(set(together.num_accepted.tolist())) > 1
    order = [4, 2, 0, 3, 1]
    for column, shuffled in zip(together, verify(batch.of(order), replacement)):
        assert torch.equal(column[order], shuffled)
    for branch in range(batch.num_branches):
        for column, alone in zip(together, verify(batch.of([branch]), replacement)):
            assert torch.equal(column[branch : branch + 1], alone)


# ---- cases of probability 0, and things that are none of a distribution ----


def verify_one(
    p: list[list[float]], q: list[list[float]] | None, tokens: list[int], **options: object
) -> Acceptance:
    """One branch whose nodes are all children of the root."""
    num_nodes = len(tokens)
    return verify_tree(
        torch.tensor(p),
        None if q is None else torch.tensor(q),
        torch.tensor(tokens),
        torch.full((num_nodes,), -1, dtype=torch.int32),
        torch.tensor([0, num_nodes], dtype=torch.int32),
        torch.tensor([1]),
        torch.tensor([0]),
        **{"replacement": False, "max_depth": 1, **options},
    )


def test_what_was_not_drawn_is_passed_over():
    p = [[0.0, 1.0, 0.0]] * 3
    for token in (-1, 0, 3, 2**32 + 1):
        out = verify_one(p, [[0.0, 1.0, 0.0]] * 2, [token, 1])
        assert out.path.tolist() == [[1]]
    # Nothing is left of q for the second child.
    out = verify_one(p, [[1.0, 0.0, 0.0]] * 2, [0, 1])
    assert out.num_accepted.tolist() == [0] and out.next_token.tolist() == [1]


def test_where_rounding_leaves_nothing_p_stays():
    p = torch.tensor([0.25, 0.25, 0.5]).tolist()
    q = [[1.0, 0.5, 0.5]] * 2
    rejections = 0
    for key in range(50):
        out = verify_chain(
            torch.tensor([p, p]),
            torch.tensor(q[:1]),
            torch.tensor([0]),
            torch.tensor([0, 1], dtype=torch.int32),
            torch.tensor([key]),
            torch.tensor([0]),
        )
        assert out.next_token >= 0
        rejections += int(out.num_accepted == 0)
    assert 25 < rejections < 45


@pytest.mark.parametrize("broken", [float("nan"), 0.0])
def test_a_broken_row_stops_its_branch_alone(broken):
    batch = random_batch(3, [4, 4, 4], 6)
    before = verify(batch)
    batch.p[batch.row(1)] = broken
    after = verify(batch)
    assert after.num_accepted[1] == 0 and after.next_token[1] == -1
    assert (after.path[1] == -1).all()
    for old, new in zip(before, after):
        assert torch.equal(old[[0, 2]], new[[0, 2]])


def test_equal_models_accept_everything():
    batch = random_batch(0, [1, 4, 7], 6, deterministic=0)
    parents = torch.tensor([n - 1 for size in (1, 4, 7) for n in range(size)], dtype=torch.int32)
    q = torch.cat([batch.p[batch.row(b)].expand(n, -1) for b, n in enumerate((1, 4, 7))])
    for branch, size in enumerate((1, 4, 7)):
        batch.p[batch.row(branch) : batch.row(branch, size)] = batch.p[batch.row(branch)].clone()
    tokens = q.argmax(1)
    arguments = (batch.cu_nodes, batch.keys, batch.positions)
    chain = verify_chain(batch.p, q, tokens, *arguments)
    tree = verify_tree(batch.p, q, tokens, parents, *arguments, replacement=False)
    assert chain.num_accepted.tolist() == [1, 4, 7]
    for one, other in zip(chain, tree):
        assert torch.equal(one, other)


# ---- greedy ----


def greedy_next(path: tuple[int, ...]) -> int:
    return hash((17, *path)) % 3


@pytest.mark.parametrize("seed", range(50))
def test_greedy_commits_what_greedy_decoding_does(seed):
    batch = random_batch(seed, [8, 0, 3], 3)
    bounds = batch.cu_nodes.tolist()
    argmax, paths = [], []
    for begin, end in zip(bounds, bounds[1:]):
        tree: dict[int, tuple[int, ...]] = {-1: ()}
        for node in range(end - begin):
            parent = int(batch.parents[begin + node])
            tree[node] = (*tree[parent], int(batch.draft_tokens[begin + node]))
        argmax += [greedy_next(path) for path in tree.values()]
        paths.append(tree)
    out = verify_greedy(torch.tensor(argmax), batch.draft_tokens, batch.parents, batch.cu_nodes)
    for branch, tree in enumerate(paths):
        greedy: tuple[int, ...] = ()
        for _ in range(10):
            greedy = (*greedy, greedy_next(greedy))
        longest = max(len(path) for path in tree.values() if path == greedy[: len(path)])
        assert out.num_accepted[branch] == longest
        path = out.path[branch, :longest].tolist()
        assert (out.path[branch, longest:] == -1).all()
        assert (tree[path[-1]] if path else ()) == greedy[:longest]
        assert out.next_token[branch] == greedy[longest]


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    nothing = np.zeros(3, np.float32)
    argmax = ReferenceOps().sample(
        logits, nothing, nothing.astype(np.int32), nothing + 1, nothing, nothing
    )
    for token, num_accepted, next_token in ((1, 1, 0), (2, 0, 1)):
        out = verify_greedy(
            torch.from_numpy(argmax)[:2],
            torch.tensor([token]),
            torch.tensor([-1], dtype=torch.int32),
            torch.tensor([0, 1], dtype=torch.int32),
        )
        assert out.num_accepted.tolist() == [num_accepted]
        assert out.next_token.tolist() == [next_token]


def test_greedy_without_a_most_probable_token():
    parents = torch.tensor([-1, 0, -1], dtype=torch.int32)
    cu_nodes = torch.tensor([0, 2, 3], dtype=torch.int32)
    # Padding has token -1, too, and must not pass for the missing argmax.
    out = verify_greedy(torch.tensor([5, -1, 7, 1, 2]), torch.tensor([5, -1, 1]), parents, cu_nodes)
    assert out.num_accepted.tolist() == [0, 1] and out.next_token.tolist() == [-1, 2]
    assert out.path.tolist() == [[-1, -1], [0, -1]]


# ---- KV ----


def test_compaction_moves_a_path_that_overlaps_itself():
    storage = torch.arange(2 * 2 * 3 * 1 * BLOCK_SIZE * 2.0).view(2, 2, 3, 1, BLOCK_SIZE, 2)
    before = storage.clone()
    # Branch 0: accepted nodes 0, 2, 3 and 5 behind slot 14, over the edge of two blocks.
    slots = [14, 15, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 2, 2 * BLOCK_SIZE + 3]
    source = torch.tensor([[slots[n] for n in (0, 2, 3, 5)], [BLOCK_SIZE + 3, -1, -1, -1]])
    target = torch.tensor([slots[:4], [BLOCK_SIZE, -1, -1, -1]])
    compact_kv(storage, source, target)
    expected = before.clone()
    for s, t in zip(source.flatten().tolist(), target.flatten().tolist()):
        if s >= 0:
            moved = before[:, :, s // BLOCK_SIZE, :, s % BLOCK_SIZE]
            expected[:, :, t // BLOCK_SIZE, :, t % BLOCK_SIZE] = moved
    assert torch.equal(storage, expected)
