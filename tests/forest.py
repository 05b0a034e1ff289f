"""`Forest`: block tables over one cache with random contents, for tests of attention."""

import numpy as np
import torch

from parallel_decode import _C
from parallel_decode.kernels import BLOCK_SIZE, BranchPlan, CpuOps
from parallel_decode.kernels.kv_format import block_items, cache_views


class Forest:
    """`k`, `v`: the cache. Blocks that nobody has written hold numbers too, or NaN if `poisoned`:
    what lies beyond the tokens of a block is nobody's business."""

    def __init__(
        self,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int = 400,
        dtype: torch.dtype = torch.float32,
        head_dim_innermost: bool = False,
        poisoned: bool = False,
    ) -> None:
        self.pool = _C.BlockPool(num_blocks)
        items = num_kv_heads * block_items(dtype, head_dim)
        keys, values = torch.zeros(2, num_blocks, items, dtype=dtype)
        self.k, self.v = cache_views(keys, values, num_kv_heads, head_dim, head_dim_innermost)
        self.head_dim = head_dim
        self.frequencies = (10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
        self._poisoned = poisoned
        if poisoned:
            self.k.fill_(torch.nan)
            self.v.fill_(torch.nan)
        elif dtype == torch.int8:
            slots = torch.arange(num_blocks * BLOCK_SIZE)
            k, v = torch.randn(2, len(slots), num_kv_heads, head_dim)
            CpuOps().kv_store(k, v, self.k, self.v, slots)
        else:
            self.k.copy_(torch.randn(self.k.shape))
            self.v.copy_(torch.randn(self.v.shape))

    def grow(self, table, count: int, position: int | None = None):
        start = table.num_tokens if position is None else position
        slots, copies = _C.append_tokens([table], [count], [start])
        for source, target in copies:
            self.k[target], self.v[target] = self.k[source], self.v[source]
        if self._poisoned:
            for slot in slots.tolist():
                block, lane = divmod(slot, BLOCK_SIZE)
                self.k[block, :, :, lane] = torch.randn(self.k.shape[1:3]).to(self.k.dtype)
                self.v[block, :, lane] = torch.randn(self.k.shape[1:3]).to(self.k.dtype)
        return table

    def root(self, count: int):
        table = _C.BlockTable(self.pool)
        return self.grow(table, count) if count else table

    def plan(self, tables, rows, draft_masks=None) -> BranchPlan:
        rows = np.array(rows, np.int32)
        positions = np.concatenate(
            [np.arange(t.num_tokens - r, t.num_tokens) for t, r in zip(tables, rows, strict=True)]
        ).astype(np.int32)
        return BranchPlan(tables, rows, positions, self.frequencies, draft_masks)


def tree_masks(parents: list[int]) -> list[int]:
    """Each draft token sees itself and its ancestors; -1 is the root."""
    masks: list[int] = []
    for i, parent in enumerate(parents):
        masks.append(1 << i | (masks[parent] if parent >= 0 else 0))
    return masks
