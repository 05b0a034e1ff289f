"""The op table's decisions about drafts, and what follows from them, on the CPU.

Rows of p and q are fp32. `acceptance`, `traversal` and `typical` are the definitions: only what
ties but for rounding in fp64 can be decided otherwise.
"""

import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.draft_tree import check_column, check_drafts, check_trees
from parallel_decode.kernels.kv_format import KV_TYPES, block_items, token_parts
from parallel_decode.kernels.typical import ALPHA, EPSILON


class CpuDrafts:
    """Part of `cpu.CpuOps`."""

    native: _C.CpuOps

    def verify_greedy(
        self,
        target_argmax: Tensor,
        draft_tokens: Tensor,
        parents: Tensor | None,
        cu_nodes: Tensor,
        max_depth: int | None = None,
    ) -> Acceptance:
        trees, out = _trees(draft_tokens, parents, cu_nodes, max_depth)
        num_rows = len(draft_tokens) + len(cu_nodes) - 1
        check_column("target_argmax", target_argmax, torch.int64, num_rows)
        self.native.verify_greedy(trees, target_argmax.data_ptr())
        return out

    def verify_tree(
        self,
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
        columns = (p, q, draft_tokens, parents, cu_nodes, keys, positions)
        check_drafts(*columns, deterministic)
        trees, out = _trees(draft_tokens, parents, cu_nodes, max_depth)
        _set_laws(trees, p, q, keys, positions, replacement, deterministic)
        self.native.verify_tree(trees)
        return out

    def verify_traversal(
        self,
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
        columns = (p, q, draft_tokens, parents, cu_nodes, keys, positions)
        check_drafts(*columns, deterministic)
        trees, out = _trees(draft_tokens, parents, cu_nodes, max_depth)
        _set_laws(trees, p, q, keys, positions, replacement, deterministic)
        self.native.verify_traversal(trees)
        return out

    def verify_typical(
        self,
        p: Tensor,
        draft_tokens: Tensor,
        parents: Tensor | None,
        cu_nodes: Tensor,
        keys: Tensor,
        positions: Tensor,
        epsilon: float = EPSILON,
        alpha: float = ALPHA,
        max_depth: int | None = None,
    ) -> Acceptance:
        check_drafts(p, None, draft_tokens, parents, cu_nodes, keys, positions)
        trees, out = _trees(draft_tokens, parents, cu_nodes, max_depth)
        _set_laws(trees, p, None, keys, positions, True, None)
        self.native.verify_typical(trees, epsilon, alpha)
        return out

    def compact_kv(
        self,
        storage: Tensor,
        num_kv_heads: int,
        head_dim: int,
        source_slots: Tensor,
        target_slots: Tensor,
    ) -> None:
        if storage.dtype not in KV_TYPES:
            raise ValueError(f"a cache of {storage.dtype}: not one of the KV dtypes")
        items = block_items(storage.dtype, head_dim)
        if storage.shape[1:2] + storage.shape[3:] != (2, num_kv_heads * items):
            raise ValueError(
                f"storage must be [num_layers, 2, num_blocks, {num_kv_heads * items}], got"
                f" {tuple(storage.shape)}"
            )
        for name, x in (
            ("storage", storage),
            ("source_slots", source_slots),
            ("target_slots", target_slots),
        ):
            if not x.is_contiguous():
                raise ValueError(f"{name} must be contiguous, its strides are {x.stride()}")
        for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
            if slots.dtype != torch.int64 or slots.dim() != 2 or slots.shape != source_slots.shape:
                raise ValueError(
                    f"{name} must be int64 [num_branches, max_moves], got {slots.dtype}"
                    f" {tuple(slots.shape)}, source_slots {tuple(source_slots.shape)}"
                )
        num_layers, _, num_blocks, _ = storage.shape
        _C.compact_kv(
            storage.data_ptr(),
            num_layers,
            num_blocks,
            num_kv_heads,
            items * storage.element_size(),
            token_parts(storage.dtype, head_dim),
            source_slots.data_ptr(),
            target_slots.data_ptr(),
            *source_slots.shape,
        )


def _trees(
    draft_tokens: Tensor, parents: Tensor | None, cu_nodes: Tensor, max_depth: int | None
) -> tuple[_C.DraftArgs, Acceptance]:
    """What csrc gets, and where it puts its results."""
    num_branches, num_nodes = check_trees(draft_tokens, parents, cu_nodes)
    parents_ptr = 0 if parents is None else parents.data_ptr()
    limit = _C.checked_depth(parents_ptr, cu_nodes.data_ptr(), num_branches, num_nodes)
    if max_depth is not None:
        if max_depth < 0:
            raise ValueError(f"max_depth must be 0 or more, got {max_depth}")
        limit = max_depth
    out = Acceptance(
        torch.empty(num_branches, dtype=torch.int32),
        torch.empty(num_branches, limit, dtype=torch.int32),
        torch.empty(num_branches, dtype=torch.int64),
    )
    trees = _C.DraftArgs(
        tokens=draft_tokens.data_ptr(),
        parents=parents_ptr,
        cu_nodes=cu_nodes.data_ptr(),
        num_branches=num_branches,
        max_depth=limit,
        num_accepted=out.num_accepted.data_ptr(),
        path=out.path.data_ptr(),
        next_token=out.next_token.data_ptr(),
    )
    return trees, out


def _set_laws(
    trees: _C.DraftArgs,
    p: Tensor,
    q: Tensor | None,
    keys: Tensor,
    positions: Tensor,
    replacement: bool,
    deterministic: Tensor | None,
) -> None:
    trees.set_laws(
        p=p.data_ptr(),
        p_stride=p.stride(0),
        q=0 if q is None else q.data_ptr(),
        q_stride=0 if q is None else q.stride(0),
        deterministic=0 if deterministic is None else deterministic.data_ptr(),
        vocab_size=p.shape[1],
        replacement=replacement,
    )
    trees.set_chance(keys.data_ptr(), positions.data_ptr())
