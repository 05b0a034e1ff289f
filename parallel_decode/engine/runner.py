"""One forward step: tokens of many branches to logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from parallel_decode import _C
from parallel_decode.engine.branch import Branch, Row
from parallel_decode.engine.kv_cache import KVCache
from parallel_decode.engine.step_graphs import StepGraphs
from parallel_decode.kernels import BranchPlan
from parallel_decode.model.transformer import Transformer


class Chunk(NamedTuple):
    """The next tokens of a branch to compute. `all_logits`: for each of them, else the last."""

    branch: Branch
    tokens: Sequence[int]
    wants_logits: bool = True
    all_logits: bool = False


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
        self._device = cache.storage.device
        self._inverse_frequencies = np.ascontiguousarray(
            model.inverse_frequencies.numpy(), np.float32
        )

    def blocks_needed(self, chunks: Sequence[Chunk]) -> int:
        """Upper bound of the blocks that `forward` takes from the pool."""
        return _C.blocks_needed(
            [chunk.branch.table for chunk in chunks],
            np.array([len(chunk.tokens) for chunk in chunks], np.int32),
            np.array([chunk.branch.position for chunk in chunks], np.int32),
        )

    def forward(
        self, chunks: Sequence[Chunk]
    ) -> tuple[StepStats, dict[int, tuple[torch.Tensor, int]]]:
        """Computes and stores the chunks.

        Returns:
            The step's figures, and for each chunk number with `all_logits` a pair (logits, row of
            the chunk's first token in them).
        """
        tables = [chunk.branch.table for chunk in chunks]
        counts = np.array([len(chunk.tokens) for chunk in chunks], np.int32)
        starts = np.array([chunk.branch.position for chunk in chunks], np.int32)
        # The kernels look positions up in the rope tables unchecked.
        assert (starts + counts).max() <= self._model.max_seq_len, (starts, counts)
        slots, copies = _C.append_tokens(tables, counts, starts)
        self._cache.copy_blocks(copies)
        ids = np.array([token for chunk in chunks for token in chunk.tokens], np.int64)
        if len(ids) == len(chunks):  # a plain decode step
            positions, ends = starts, np.arange(1, len(ids) + 1)
        else:
            ends = np.cumsum(counts)
            within = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts, counts)
            positions = (np.repeat(starts, counts) + within).astype(np.int32)
        plan = BranchPlan(tables, counts, positions, self._inverse_frequencies)
        replayed = None
        decodes = len(ids) == len(chunks) and all(chunk.wants_logits for chunk in chunks)
        if self._graphs is not None and decodes:
            replayed = self._graphs.run(ids, positions, slots, plan)
        hidden, logits = (None, None) if replayed is None else replayed
        if hidden is None:
            hidden = self._model.forward(
                torch.from_numpy(ids).to(self._device),
                torch.from_numpy(positions).to(self._device),
                torch.from_numpy(slots).to(self._device),
                plan,
                self._cache,
            )
        all_logits = self._leave_logits(chunks, ends.tolist(), hidden, logits)
        stats = StepStats(
            num_branches=len(chunks),
            num_tokens=len(ids),
            kv_tokens_read=plan.tokens_read,
            kv_tokens_stored=plan.tokens_stored,
            kv_tokens_logical=plan.tokens_logical,
            kv_bytes_read=int(plan.tokens_read * self._cache.bytes_per_token),
            kv_bytes_floor=int(plan.tokens_stored * self._cache.bytes_per_token),
            attention_launches=plan.num_launches,
        )
        return stats, all_logits

    def _leave_logits(
        self,
        chunks: Sequence[Chunk],
        ends: Sequence[int],
        hidden: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> dict[int, tuple[torch.Tensor, int]]:
        rows: list[int] = []
        last_rows: list[int] = []
        first_rows: dict[int, int] = {}
        for index, (chunk, end) in enumerate(zip(chunks, ends, strict=True)):
            branch = chunk.branch
            branch.advance(len(chunk.tokens))
            branch.hidden_row = Row(hidden, end - 1)
            if chunk.all_logits:
                first_rows[index] = len(rows)
                rows += range(end - len(chunk.tokens), end)
            elif chunk.wants_logits:
                rows.append(end - 1)
            last_rows.append(len(rows) - 1)
        if not rows:
            return {}
        if logits is None:
            whole = len(rows) == len(hidden)
            picked = hidden if whole else hidden[torch.tensor(rows, device=hidden.device)]
            logits = self._model.logits(picked)
        for chunk, row in zip(chunks, last_rows, strict=True):
            if chunk.wants_logits:
                chunk.branch.logits_row = Row(logits, row)
        return {index: (logits, row) for index, row in first_rows.items()}
