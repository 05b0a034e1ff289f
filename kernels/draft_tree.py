"""What drafts look like to `acceptance` and `verify`, and what is checked of them.

The trees of a batch lie one behind the other: `cu_nodes` [num_branches + 1] int32 is where each
branch's nodes begin, `draft_tokens` [num_nodes] int64 holds their tokens and `parents` [num_nodes]
int32 their parents as numbers within the tree, each smaller than the node's own and -1 for children
of the branch itself.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from parallel_decode.kernels.plan import BLOCK_SIZE


def check_column(name: str, x: Tensor, dtype: torch.dtype, num_items: int) -> None:
    if x.dtype != dtype or tuple(x.shape) != (num_items,) or not x.is_contiguous():
        raise ValueError(
            f"{name} must hold {num_items} {dtype}, got {x.dtype} {tuple(x.shape)} with strides"
            f" {x.stride()}"
        )


def check_trees(draft_tokens: Tensor, parents: Tensor | None, cu_nodes: Tensor) -> tuple[int, int]:
    """(num_branches, num_nodes); chains have no parents."""
    num_nodes = draft_tokens.numel()
    check_column("draft_tokens", draft_tokens, torch.int64, num_nodes)
    check_column("cu_nodes", cu_nodes, torch.int32, max(cu_nodes.numel(), 1))
    if parents is not None:
        check_column("parents", parents, torch.int32, num_nodes)
    return len(cu_nodes) - 1, num_nodes


def check_laws(
    p: Tensor, q: Tensor | None, deterministic: Tensor | None, num_branches: int, num_nodes: int
) -> None:
    num_rows = num_branches + num_nodes
    if p.dim() != 2 or len(p) != num_rows or p.shape[1] == 0 or not p.is_floating_point():
        raise ValueError(
            f"p must be [{num_rows}, vocab_size] for {num_branches} branches and {num_nodes} nodes,"
            f" got {p.dtype} {tuple(p.shape)}"
        )
    if q is not None and (tuple(q.shape) != (num_nodes, p.shape[1]) or q.dtype != p.dtype):
        raise ValueError(
            f"q must be {p.dtype} {(num_nodes, p.shape[1])}, got {q.dtype} {tuple(q.shape)}"
        )
    if deterministic is not None:
        check_column("deterministic", deterministic, torch.bool, num_nodes)


def check_drafts(
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    deterministic: Tensor | None = None,
) -> tuple[int, int]:
    """(num_branches, num_nodes) of what a kernel decides about: all on one device, p and q fp32
    and contiguous in the last dimension."""
    num_branches, num_nodes = check_trees(draft_tokens, parents, cu_nodes)
    check_laws(p, q, deterministic, num_branches, num_nodes)
    for name, x in (("p", p), ("q", q)):
        if x is not None and (x.dtype != torch.float32 or x.stride(1) != 1):
            raise ValueError(
                f"{name} must be float32 and contiguous in the last dimension, got {x.dtype} with"
                f" strides {x.stride()}"
            )
    check_column("keys", keys, torch.int64, num_branches)
    check_column("positions", positions, torch.int64, num_branches)
    check_devices(p, q=q, draft_tokens=draft_tokens, parents=parents, cu_nodes=cu_nodes)
    check_devices(p, keys=keys, positions=positions, deterministic=deterministic)
    return num_branches, num_nodes


def check_moves(storage: Tensor, source_slots: Tensor, target_slots: Tensor) -> None:
    if storage.dim() != 6 or storage.shape[1] != 2 or storage.shape[4] != BLOCK_SIZE:
        raise ValueError(
            f"storage must be [num_layers, 2, num_blocks, num_kv_heads, {BLOCK_SIZE}, head_dim],"
            f" got {tuple(storage.shape)}"
        )
    for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
        if slots.dim() != 2 or slots.shape != source_slots.shape or slots.dtype != torch.int64:
            raise ValueError(
                f"{name} must be int64 [num_branches, max_moves], got {slots.dtype}"
                f" {tuple(slots.shape)}, source_slots {tuple(source_slots.shape)}"
            )


def trees(parents: Tensor, cu_nodes: Tensor) -> Iterator[tuple[int, int, list[int]]]:
    """(begin, end, parents) of each tree, on the host; ValueError where it is none."""
    for begin, end in _bounds(cu_nodes, len(parents)):
        above = parents[begin:end].tolist()
        for node, parent in enumerate(above):
            if not -1 <= parent < node:
                raise ValueError(f"node {node} of a tree can't be a child of node {parent}")
        yield begin, end, above


def chain_parents(num_nodes: int, cu_nodes: Tensor) -> Tensor:
    """Of chains: node n continues node n - 1."""
    parents = [n - 1 for begin, end in _bounds(cu_nodes, num_nodes) for n in range(end - begin)]
    return torch.tensor(parents, dtype=torch.int32)


def depth_limit(
    num_nodes: int, parents: Tensor | None, cu_nodes: Tensor, max_depth: int | None
) -> int:
    """max_depth, or the depth of the deepest node; to find that, the trees come to the host."""
    if max_depth is not None:
        if max_depth < 0:
            raise ValueError(f"max_depth must be 0 or more, got {max_depth}")
        return max_depth
    deepest = 0
    if parents is None:
        parents = chain_parents(num_nodes, cu_nodes)
    for _, _, above in trees(parents, cu_nodes):
        depth = {-1: 0}
        for node, parent in enumerate(above):
            depth[node] = depth[parent] + 1
        deepest = max(deepest, *depth.values())
    return deepest


def _bounds(cu_nodes: Tensor, num_nodes: int) -> Iterator[tuple[int, int]]:
    bounds = cu_nodes.tolist()
    if bounds[0] != 0 or bounds[-1] != num_nodes or sorted(bounds) != bounds:
        raise ValueError(f"cu_nodes must rise from 0 to {num_nodes}, got {bounds}")
    return zip(bounds, bounds[1:])


def check_devices(x: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, the rest is on {x.device}")
