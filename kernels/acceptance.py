"""Which tokens of a draft the target accepts: the definition that the kernels are tested against.

A draft is a tree of tokens behind a branch, see `draft_tree`; siblings stand in the order in which
they were drawn. With p' = p, the target's distribution behind the current node, its children are
tried in order,

    accept x with probability min(1, p'(x) / q'(x)), and go on from x
    else p' <- norm(max(p' - q', 0))

and when none is left the next token is drawn from p'. For one child each this is speculative
sampling (Leviathan et al. 2023), for more it is multi-round rejection (Miao et al. 2024, SpecInfer;
Jeon et al. 2024, RSD). What is committed has the law of the target's own tokens as long as q' is
the law that the child was drawn from, given its earlier siblings:

    with replacement      q' = q
    without replacement   q' = norm(q without the tokens of rejected siblings)
    deterministic         q' = 1 at the token itself, as for n-grams or the k most probable of q

Rows of p and q sum to 1 up to rounding and are taken as they are. Some cases have probability 0 in
exact arithmetic, or do not come from a sound drafter:

    q'(x) = 0, nothing left of q, or x outside the vocabulary: x is no draw of q'. It is passed
        over, p' stays.
    max(p' - q', 0) = 0 after a rejection: the rows' sums differ by rounding. p' stays, and the
        siblings left are passed over.
    NaN in what the walk reads, or a p' without any weight to draw from: the branch has no result,
        num_accepted = 0 and next_token = -1. What it reads is p'(x) and q'(x) of the children that
        it tests, all of p' and q' where one is rejected, and all of the p' that it draws from.

Chance is uniform number `index` of stream `stream` of the branch's key. With `depth` tokens
accepted so far,

    index = position + depth, stream = ACCEPT_STREAM + r    tests the r-th sibling, r = 0, 1, ...
    index = position + depth, stream = NEXT_STREAM          draws the next token
    index = position, stream = TRAVERSAL_STREAM + n         whether node n of the tree fails, in
                                                            `traversal` instead of the first one

where `position` is that of the first draft token, so that `index` is the position of the token in
question; `traversal` says why not there. Nothing else enters: a branch decides the same alone and
in any batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.draft_tree import (
    chain_parents,
    check_column,
    check_laws,
    check_moves,
    check_trees,
    depth_limit,
    trees,
)
from parallel_decode.kernels.plan import BLOCK_SIZE

NEXT_STREAM = 1
TRAVERSAL_STREAM = 1 << 15
ACCEPT_STREAM = 1 << 16
"""Stream 0 is plain sampling. A drafter draws from streams of its own, from 2^17 on."""

Row = NDArray[np.float64]
Walk = tuple[list[int], int]
"""The accepted nodes and the next token, -1 where there is none."""


class Acceptance(NamedTuple):
    """What is committed: the tokens of the path, then the next token.

    num_accepted: [num_branches] int32.
    path: [num_branches, max_depth] int32, accepted nodes as numbers within their tree, then -1.
    next_token: [num_branches] int64, -1 where a branch has no result; it has no path then.
    """

    num_accepted: Tensor
    path: Tensor
    next_token: Tensor


class Uniforms:
    """What chance decides in one branch; u is number `index` of stream `stream` of its key."""

    def __init__(self, key: int) -> None:
        self._key = np.array([key], np.int64).view(np.uint64)

    def below(self, threshold: float, index: int, stream: int) -> bool:
        """u < threshold"""
        return self._uniform(index, stream) < threshold

    def choose(self, weights: Row, index: int, stream: int) -> int:
        """The first x with sum_{y <= x} w(y) > u sum_y w(y)."""
        reached = np.cumsum(weights)
        if not 0 < reached[-1] < np.inf:
            return -1
        return int(np.argmax(reached > self._uniform(index, stream) * reached[-1]))

    def _uniform(self, index: int, stream: int) -> float:
        return float(_C.uniforms(self._key, np.array([index]), stream)[0])


def draft_law(
    q: Row | None, token: int, rejected: Sequence[int], replacement: bool, target: Row
) -> Row:
    """q' of a child, given its rejected siblings. q: None where it is deterministic."""
    if q is None:
        return np.eye(1, len(target), token)[0]
    if replacement or not rejected:
        return q
    law = q.copy()
    law[rejected] *= 0  # a NaN stays one
    return law / law.sum() if law[token] != 0 else law


def accept(
    tokens: Sequence[int],
    parents: Sequence[int],
    p: Row,
    q: Row | None,
    deterministic: Sequence[bool],
    replacement: bool,
    max_depth: int,
    position: int,
    uniforms: Uniforms,
) -> Walk:
    """One branch. p: [1 + num_nodes, vocab_size], its own row first; q: [num_nodes, vocab_size].

    `uniforms` may be anything with the two methods: tests pass one that goes all ways there are.
    """
    path: list[int] = []
    rejected: list[int] = []
    current, rank, target = -1, 0, p[0]
    # Children come after their parent, so those of an accepted node are all still ahead.
    for node, (token, parent) in enumerate(zip(tokens, parents)):
        if parent != current or len(path) == max_depth:
            continue
        stream = ACCEPT_STREAM + rank
        rank += 1
        if not 0 <= token < len(target):
            continue
        row = None if q is None or deterministic[node] else q[node]
        law = draft_law(row, token, rejected, replacement, target)
        if law[token] == 0:
            continue
        if uniforms.below(target[token] / law[token], position + len(path), stream):
            path.append(node)
            rejected = []
            current, rank, target = node, 0, p[1 + node]
            continue
        rejected.append(token)
        rest = np.maximum(target - law, 0)
        if rest.sum() == 0:
            break
        target = rest / rest.sum()
    return path, uniforms.choose(target, position + len(path), NEXT_STREAM)


def longest_path(
    parents: Sequence[int], max_depth: int, passes: Callable[[int], bool]
) -> list[int]:
    """The nodes on the longest path of those that pass, the first of equally long ones."""
    paths: dict[int, list[int]] = {-1: []}
    longest: list[int] = []
    for node, parent in enumerate(parents):
        if parent in paths and len(paths[parent]) < max_depth and passes(node):
            paths[node] = [*paths[parent], node]
            longest = max(longest, paths[node], key=len)
    return longest


def accept_greedy(
    tokens: Sequence[int], parents: Sequence[int], argmax: Sequence[int], max_depth: int
) -> Walk:
    """One branch. argmax: [1 + num_nodes], its own first."""
    path = longest_path(
        parents, max_depth, lambda node: tokens[node] == argmax[1 + parents[node]] >= 0
    )
    return path, argmax[1 + path[-1] if path else 0]


def verify_greedy(
    target_argmax: Tensor,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    max_depth: int | None = None,
) -> Acceptance:
    """The longest path whose tokens are the target's most probable ones, and the one behind it.

    Args:
        target_argmax: [num_branches + num_nodes] int64, rows as of p in `verify_tree`; -1 where a
            row has none, as one with a NaN. The lowest id where several are most probable.
        draft_tokens, parents, cu_nodes, max_depth: as in `verify_tree`. Of nodes with equally long
            paths the first is taken.
    """
    num_branches, num_nodes = check_trees(draft_tokens, parents, cu_nodes)
    check_column("target_argmax", target_argmax, torch.int64, num_branches + num_nodes)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    if parents is None:
        parents = chain_parents(num_nodes, cu_nodes)
    tokens, argmax = draft_tokens.tolist(), target_argmax.tolist()
    walks = [
        accept_greedy(tokens[begin:end], above, argmax[begin + branch : end + branch + 1], limit)
        for branch, (begin, end, above) in enumerate(trees(parents, cu_nodes))
    ]
    return pack_walks(walks, limit, draft_tokens.device)


def verify_chain(
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    max_depth: int | None = None,
) -> Acceptance:
    """`verify_tree` of chains: each node is the only child of the one before it."""
    return verify_tree(
        p, q, draft_tokens, None, cu_nodes, keys, positions, True, max_depth=max_depth
    )


def verify_tree(
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    replacement: bool,
    deterministic: Tensor | None = None,
    max_depth: int | None = None,
) -> Acceptance:
    """Multi-round rejection over one tree a branch.

    Args:
        p: [num_branches + num_nodes, vocab_size], the target's distributions. Those of branch b
            begin in row cu_nodes[b] + b: behind the branch itself, then behind each of its nodes.
        q: [num_nodes, vocab_size], the drafter's distribution behind the parent of each node, the
            same for all siblings and not yet without their tokens. None: all are deterministic.
        draft_tokens, parents, cu_nodes: see `draft_tree`; no parents: chains.
        keys: [num_branches] int64, the bits of uint64 keys.
        positions: [num_branches] int64, of the first draft token.
        replacement: how siblings were drawn.
        deterministic: [num_nodes] bool, nodes that were not drawn; their rows of q are not read.
        max_depth: nodes below this depth are left out; None: there are none below.

    Raises:
        ValueError: a shape, a dtype or a tree is not as said.
    """
    columns = (p, q, draft_tokens, parents, cu_nodes, keys, positions)
    return verify_by(accept, *columns, replacement, deterministic, max_depth)


def verify_by(
    rule: Callable[..., Walk],
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    replacement: bool,
    deterministic: Tensor | None,
    max_depth: int | None,
) -> Acceptance:
    """`verify_tree` by `accept` or another rule of its signature."""
    num_branches, num_nodes = check_trees(draft_tokens, parents, cu_nodes)
    check_laws(p, q, deterministic, num_branches, num_nodes)
    check_column("keys", keys, torch.int64, num_branches)
    check_column("positions", positions, torch.int64, num_branches)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    if parents is None:
        parents = chain_parents(num_nodes, cu_nodes)
    tokens = draft_tokens.tolist()
    flags = [False] * num_nodes if deterministic is None else deterministic.tolist()
    target = p.double().cpu().numpy()
    draft = None if q is None else q.double().cpu().numpy()
    walks = [
        rule(
            tokens[begin:end],
            above,
            target[begin + branch : end + branch + 1],
            None if draft is None else draft[begin:end],
            flags[begin:end],
            replacement,
            limit,
            int(positions[branch]),
            Uniforms(int(keys[branch])),
        )
        for branch, (begin, end, above) in enumerate(trees(parents, cu_nodes))
    ]
    return pack_walks(walks, limit, draft_tokens.device)


def compact_kv(storage: Tensor, source_slots: Tensor, target_slots: Tensor) -> None:
    """Moves the keys and values of accepted tokens right behind their branch's prefix.

    Args:
        storage: [num_layers, 2, num_blocks, num_kv_heads, BLOCK_SIZE, head_dim] of any dtype.
        source_slots, target_slots: [num_branches, max_moves] int64, block * BLOCK_SIZE + lane, and
            -1 in both where a branch has fewer moves. A slot may be a source and a target of one
            branch: all sources are read before a target is written. Branches share no slots.
    """
    check_moves(storage, source_slots, target_slots)
    used = source_slots >= 0
    source, target = source_slots[used], target_slots[used]
    moved = storage[:, :, source // BLOCK_SIZE, :, source % BLOCK_SIZE].clone()
    storage[:, :, target // BLOCK_SIZE, :, target % BLOCK_SIZE] = moved


def pack_walks(walks: Sequence[Walk], max_depth: int, device: torch.device) -> Acceptance:
    """Of all branches."""
    paths = [path if token >= 0 else [] for path, token in walks]
    padded = [[*path, *[-1] * (max_depth - len(path))] for path in paths]
    return Acceptance(
        torch.tensor([len(path) for path in paths], dtype=torch.int32, device=device),
        torch.tensor(padded, dtype=torch.int32, device=device).view(len(walks), max_depth),
        torch.tensor([token for _, token in walks], dtype=torch.int64, device=device),
    )
