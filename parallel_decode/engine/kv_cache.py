"""The paged KV memory of one model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels import BLOCK_SIZE, Ops
from parallel_decode.kernels.kv_format import block_items, cache_views


class PoolExhausted(RuntimeError):
    """A question needs more KV blocks than the pool can ever give it."""


def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> float:
    """Keys and values of one token in all layers, scales included."""
    items = block_items(dtype, head_dim) / BLOCK_SIZE
    return 2 * num_layers * num_kv_heads * items * dtype.itemsize


class KVCache:
    """Blocks of keys and values for all layers, counted by `pool`.

    storage: [num_layers, 2, num_blocks, num_kv_heads * block_items], laid out as
    `kernels/kv_format.py` says. Memory is touched, and so really taken, when a block is first
    written.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        ops: Ops,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pool = _C.BlockPool(num_blocks)
        self.block_size = BLOCK_SIZE
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.bytes_per_token = bytes_per_token(num_layers, num_kv_heads, head_dim, dtype)
        self._ops = ops
        items = num_kv_heads * block_items(dtype, head_dim)
        self.storage = torch.empty(num_layers, 2, num_blocks, items, dtype=dtype, device=device)
        # Others' storages in the same blocks: what moves here moves there.
        self.attached: Sequence[Tensor] = ()
        self._layers = [
            cache_views(keys, values, num_kv_heads, head_dim, ops.head_dim_innermost)
            for keys, values in self.storage
        ]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """(k_cache, v_cache) of a layer, in the layout of `kernels/kv_format.py`."""
        return self._layers[index]

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.pool.num_blocks - self.pool.num_free

    def compact(self, source: NDArray[np.int64], target: NDArray[np.int64]) -> None:
        """Moves tokens from slot to slot in every layer.

        source, target: [num_branches, max_moves] slots, -1 where a branch has fewer; see
            `kernels.acceptance.compact_kv`.
        """
        slots = [torch.from_numpy(x).to(self.storage.device) for x in (source, target)]
        for storage in (self.storage, *self.attached):
            self._ops.compact_kv(storage, self.num_kv_heads, self.head_dim, *slots)

    def copy_out(self, blocks: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """What blocks hold in every layer, in the host's memory: (storage, its bytes) of this cache
        and of those that are attached. From a GPU it goes to pinned memory.

        Returns:
            bytes: [num_layers, 2, num_blocks, bytes of a block] uint8.
        """
        numbers = torch.tensor(blocks, device=self.storage.device)
        copies = []
        for storage in (self.storage, *self.attached):
            held = storage.view(torch.uint8).index_select(2, numbers)
            if held.device.type != "cpu":
                held = torch.empty(held.shape, dtype=held.dtype, pin_memory=True).copy_(held)
            copies.append((storage, held))
        return copies

    def copy_in(self, blocks: Sequence[int], copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Fills blocks with what `copy_out` took; nothing of a storage that was detached since."""
        numbers = torch.tensor(blocks, device=self.storage.device)
        here = {id(storage) for storage in (self.storage, *self.attached)}
        for storage, held in copies:
            if id(storage) in here:
                storage.view(torch.uint8).index_copy_(2, numbers, held.to(storage.device))

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole blocks (from, to) in every layer: the copy of copy-on-write."""
        if copies:
            for storage in (self.storage, *self.attached):
                self._ops.copy_blocks(storage, copies)
