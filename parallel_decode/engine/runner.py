"""One forward step: tokens of many branches to logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from parallel_decode import _C
from parallel_decode.engine.branch import pick_rows
from parallel_decode.engine.chunk import Chunk
from parallel_decode.engine.draft_tree import columns_of
from parallel_decode.engine.kv_cache import KVCache
from parallel_decode.engine.row_observer import ComputedRows, RowObserver
from parallel_decode.engine.sight import reading_table, stored_before
from parallel_decode.engine.step_graphs import StepGraphs
from parallel_decode.kernels import BranchPlan
from parallel_decode.model.transformer import Transformer


class Computed(NamedTuple):
    """What a step gives of a chunk: its logits from `row` on, and the slots of its draft's keys."""

    logits: torch.Tensor
    row: int
    slots: NDArray[np.int64]


@dataclass(frozen=True)
class StepStats:
    """What one forward step did."""

    num_branches: int
    num_tokens: int
    kv_tokens_read: int
    """Of a layer, as often as it is read."""
    kv_tokens_stored: int
    """Those tokens, each once: the floor."""
    kv_tokens_logical: int
    """As if every branch read for itself."""
    kv_bytes_read: int
    """Of all layers."""
    kv_bytes_floor: int
    """What they would be if each stored token were read once."""
    attention_launches: int
    """Of a layer."""

    @property
    def path(self) -> str:
        """Whether anything was read for several branches at once."""
        return "shared" if self.kv_tokens_read < self.kv_tokens_logical else "alone"


class Runner:
    """Runs chunks through the model and leaves logits and hidden states on the branches."""

    def __init__(
        self, model: Transformer, cache: KVCache, graphs: StepGraphs | None = None
    ) -> None:
        self._model = model
        self._cache = cache
        self._graphs = graphs
        self.observer: RowObserver | None = None
        self._device = cache.storage.device
        self._inverse_frequencies = np.ascontiguousarray(
            model.inverse_frequencies.numpy(), np.float32
        )

    @property
    def vocab_size(self) -> int:
        return self._model.config.vocab_size

    def blocks_needed(self, chunks: Sequence[Chunk]) -> int:
        """Upper bound of the blocks that `forward` takes from the pool."""
        return _C.blocks_needed(
            [chunk.branch.table for chunk in chunks],
            np.array([chunk.num_rows for chunk in chunks], np.int32),
            np.array([chunk.branch.position for chunk in chunks], np.int32),
        )

    def forward(self, chunks: Sequence[Chunk]) -> tuple[StepStats, dict[int, Computed]]:
        """Computes and stores the chunks. A table then holds the keys of its chunk's draft, too,
        until `commit` says which of them stay.

        Returns:
            The step's figures, and by the numbers of chunks what these give.
        """
        tables = [chunk.branch.table for chunk in chunks]
        stored = stored_before([chunk.branch for chunk in chunks])
        counts = np.array([chunk.num_rows for chunk in chunks], np.int32)
        starts = np.array([chunk.branch.position for chunk in chunks], np.int32)
        slots, copies = _C.append_tokens(tables, counts, starts)
        self._cache.copy_blocks(copies)
        ids, positions, masks = _C.step_rows(
            [chunk.tokens for chunk in chunks],
            columns_of(chunk.draft for chunk in chunks),
            starts,
        )
        # The kernels look positions up in the rope tables unchecked.
        assert positions.max() < self._model.max_seq_len, positions
        views: list[_C.BlockTable] = []
        if stored:
            tables, views = self._reading_tables(chunks, stored)
        plan = BranchPlan(tables, counts, positions, self._inverse_frequencies, masks)
        try:
            hidden, logits = self._run(chunks, ids, positions, slots, plan)
            stats = self._stats(chunks, plan)
        finally:
            for view in views:
                view.truncate(0)  # else the next token would find its block shared, and copy it
        if self.observer is not None:
            before = [chunk.branch.hidden_row for chunk in chunks]
            rows = ComputedRows(chunks, ids, positions, slots, hidden, before)
            self.observer.computed(rows)
        return stats, self._leave_logits(chunks, np.cumsum(counts).tolist(), slots, hidden, logits)

    def _reading_tables(
        self, chunks: Sequence[Chunk], stored: Mapping[int, int]
    ) -> tuple[list[_C.BlockTable], list[_C.BlockTable]]:
        """What each chunk reads, and those of these tables that were made for it."""
        pool = self._cache.pool
        made = [reading_table(pool, chunk.branch, chunk.num_rows, stored) for chunk in chunks]
        tables = [
            chunk.branch.table if table is None else table
            for chunk, table in zip(chunks, made, strict=True)
        ]
        return tables, [table for table in made if table is not None]

    def _run(
        self,
        chunks: Sequence[Chunk],
        ids: NDArray[np.int64],
        positions: NDArray[np.int32],
        slots: NDArray[np.int64],
        plan: BranchPlan,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states of all rows, and their logits where they come with them."""
        decodes = len(ids) == len(chunks) and all(chunk.num_logits for chunk in chunks)
        if self._graphs is not None and decodes:
            replayed = self._graphs.run(ids, positions, slots, plan)
            if replayed is not None:
                return replayed
        hidden = self._model.forward(
            torch.from_numpy(ids).to(self._device),
            torch.from_numpy(positions).to(self._device),
            torch.from_numpy(slots).to(self._device),
            plan,
            self._cache,
        )
        return hidden, None

    def _stats(self, chunks: Sequence[Chunk], plan: BranchPlan) -> StepStats:
        return StepStats(
            num_branches=len(chunks),
            num_tokens=plan.num_rows,
            kv_tokens_read=plan.tokens_read,
            kv_tokens_stored=plan.tokens_stored,
            kv_tokens_logical=plan.tokens_logical,
            kv_bytes_read=int(plan.tokens_read * self._cache.bytes_per_token),
            kv_bytes_floor=int(plan.tokens_stored * self._cache.bytes_per_token),
            attention_launches=plan.num_launches,
        )

    def commit(self, accepted: Sequence[tuple[Chunk, NDArray[np.int64], Sequence[int]]]) -> None:
        """Keeps the keys of accepted draft nodes, right behind those of their chunk, and no others.

        accepted: (chunk, slots of its draft's nodes, the accepted nodes, each the child of the one
            before).
        """
        moves = [
            (slots.tolist(), nodes)
            for chunk, slots, nodes in accepted
            # Where they are not the first ones already; they rise. The blocks of a branch that was
            # released since may be somebody else's by now.
            if nodes and nodes[-1] >= len(nodes) and chunk.branch.table.num_tokens
        ]
        if moves:
            width = max(len(nodes) for _, nodes in moves)
            padding = [[-1] * (width - len(nodes)) for _, nodes in moves]
            moved = list(zip(moves, padding, strict=True))
            source = [[slots[node] for node in nodes] + rest for (slots, nodes), rest in moved]
            target = [slots[: len(nodes)] + rest for (slots, nodes), rest in moved]
            self._cache.compact(np.array(source, np.int64), np.array(target, np.int64))
        for chunk, _, nodes in accepted:
            chunk.branch.keep_drafted(len(nodes), nodes[-1] if nodes else -1)

    def _leave_logits(
        self,
        chunks: Sequence[Chunk],
        ends: Sequence[int],
        slots: NDArray[np.int64],
        hidden: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> dict[int, Computed]:
        rows: list[int] = []
        last_rows: list[int] = []
        first_rows: dict[int, tuple[int, int]] = {}
        for index, (chunk, end) in enumerate(zip(chunks, ends, strict=True)):
            branch, num_nodes = chunk.branch, chunk.num_nodes
            branch.num_drafted = num_nodes
            branch.advance(len(chunk.tokens))
            end -= num_nodes
            branch.leave_hidden(hidden, end - 1)
            if chunk.gives_logits or num_nodes:
                first_rows[index] = len(rows), end
            rows += range(end - chunk.num_logits, end)
            last_rows.append(len(rows) - 1)
            rows += range(end, end + num_nodes)
        if not rows:
            return {}
        if logits is None:
            whole = len(rows) == len(hidden)
            picked = hidden if whole else pick_rows(hidden, np.array(rows))
            logits = self._model.logits(picked)
        for chunk, row in zip(chunks, last_rows, strict=True):
            if chunk.num_logits:
                chunk.branch.leave_logits(logits, row)
        return {
            index: Computed(logits, row, slots[end : end + chunks[index].num_nodes])
            for index, (row, end) in first_rows.items()
        }
