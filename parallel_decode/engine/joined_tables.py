"""Views of several branches behind their parent's, as one table: the joins of keys."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.kv_cache import KVCache, PoolExhausted
from parallel_decode.kernels import kv_format


class JoinedTables:
    """Builds the tables of joins; no key is copied but for "thought_embed".

    Args:
        turn_keys: RoPE of keys [num_tokens, num_kv_heads, head_dim] at positions [num_tokens].
        evict: frees up to so many idle blocks -> how many it freed.
    """

    def __init__(
        self,
        cache: KVCache,
        turn_keys: Callable[[Tensor, Tensor], Tensor],
        evict: Callable[[int], int],
    ) -> None:
        self._cache = cache
        self._turn_keys = turn_keys
        self._evict = evict

    def build(
        self,
        parent: Branch,
        branches: Sequence[Branch],
        ranges: Sequence[tuple[int, int]],
        policy: str,
        embeddings: Tensor | None,
    ) -> tuple[_C.BlockTable, int]:
        """(views of the parent and of each branch's own tokens, position after them).

        ranges: (first position, promised end or 0) of each branch's own tokens.
        """
        table, cursor = parent.table.fork(), parent.position
        first_entries = []
        for branch, (start, limit) in zip(branches, ranges, strict=True):
            own = branch.position - start
            offset = cursor - start if policy == "query_rotate" else 0
            first_entries.append(table.num_entries)
            table.append_view(branch.table, parent.num_stored, branch.num_stored, offset)
            if policy == "query_rotate":
                cursor += own
            elif policy in ("same_start_max_join", "thought_embed"):
                cursor = max(cursor, parent.position + own)
            else:
                cursor = max(cursor, limit)
        if embeddings is not None and policy == "thought_embed":
            try:
                self._embed_thoughts(table, first_entries, embeddings)
            except PoolExhausted:
                table.truncate(0)  # else it lives as long as somebody keeps the exception
                raise
        return table, cursor

    def check_embeddings(self, embeddings: Tensor | None, num_branches: int) -> None:
        expected = (num_branches, self._cache.num_kv_heads, self._cache.head_dim)
        if embeddings is None or tuple(embeddings.shape) != expected:
            shape = None if embeddings is None else tuple(embeddings.shape)
            raise ValueError(f"'thought_embed' needs embeddings of shape {expected}, got {shape}")

    def _embed_thoughts(
        self, table: _C.BlockTable, first_entries: Sequence[int], embeddings: Tensor
    ) -> None:
        """k <- R_t (k + T), v <- v + T (ParaThinker), in private copies of the blocks.

        first_entries: [i] is the entry with which branch i begins.
        """
        self._make_room(table.num_entries - first_entries[0])
        self._cache.copy_blocks(table.make_private(first_entries[0]))
        entries = table.entries().tolist()
        for embedding, begin, end in zip(
            embeddings, first_entries, (*first_entries[1:], len(entries)), strict=True
        ):
            for block, start, stop, offset, position in entries[begin:end]:
                stored = torch.arange(stop - start, dtype=torch.int32) + position - offset
                turned = self._turn_keys(
                    embedding.expand(stop - start, *embedding.shape).contiguous(), stored
                )
                values = embedding.to(turned.device).expand_as(turned)
                for layer in range(self._cache.num_layers):
                    kv_format.add_to_tokens(turned, values, *self._cache.layer(layer), block, start)

    def _make_room(self, num_blocks: int) -> None:
        missing = num_blocks - self._cache.pool.num_free
        if missing > 0 and self._evict(missing) < missing:
            raise PoolExhausted(
                f"the join copies {num_blocks} KV blocks, {self._cache.pool.num_free} are free"
            )
