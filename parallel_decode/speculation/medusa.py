"""Drafts of heads that each look further ahead from one hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from parallel_decode import _C
from parallel_decode.engine import Engine
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.model.stored_weight import stored_weight
from parallel_decode.speculation.self_draft import fused_layers
from parallel_decode.speculation.trained_heads import TrainedHeads


class MedusaDrafter(Drafter):
    """Medusa-1 (Cai et al. 2024): from the hidden state f that the branch's last token was drawn
    from, head k guesses the k-th token behind it by

        lm_head (f + silu(W_k f + b_k)).

    The heads don't know each other's guesses, nor the last token itself. A draft is the tree of
    their most probable combinations, where they guess for the random numbers that the target is
    going to draw with (csrc/draft_guess.h).

    Args:
        engine: whose branches are drafted for, on the CPU backend.
        heads: trained for its model, or where they are, see `TrainedHeads.load`; those of the
            bundled model if not given.
        num_guesses: of each head.
        min_prob: of a path, below which it is left out.

    Raises:
        ValueError: the engine is on another backend, there are no such heads, they don't fit the
            model, or a number is out of range.
    """

    nodes_are_free = True

    def __init__(
        self,
        engine: Engine,
        heads: TrainedHeads | str | Path | None = None,
        num_guesses: int = 4,
        min_prob: float = 0.02,
    ) -> None:
        fused_layers(engine)
        if num_guesses < 1 or not 0 <= min_prob <= 1:
            raise ValueError(
                "num_guesses must be at least 1 and min_prob in [0, 1], got"
                f" {num_guesses} and {min_prob}"
            )
        if not isinstance(heads, TrainedHeads):
            heads = TrainedHeads.load(engine.name if heads is None else heads, engine.config)
        if not heads.medusa:
            raise ValueError(f"{heads.path}: no Medusa head is there")
        self.engine = engine
        self.num_heads = heads.num_medusa_heads
        self._limits = (min_prob, num_guesses)
        names = [f"{number}.linear" for number in range(self.num_heads)]
        weights = [f"{name}.weight" for name in names]
        self._blocks = engine.ops.pack_linear(
            stored_weight(heads.medusa, weights, engine.placement.dtype),
            torch.cat([heads.medusa[f"{name}.bias"] for name in names]).float(),
        )

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`."""
        trees = [NO_DRAFT] * len(requests)
        asked = [
            number
            for number, (request, limit) in enumerate(zip(requests, max_nodes, strict=True))
            if limit > 0 and request.branch.num_pending == 1 and request.branch.hidden is not None
        ]
        if not asked:
            return trees
        chosen = [requests[number] for number in asked]
        p = self._probabilities(chosen)
        drafts = _C.draft_products(
            p,
            self.num_heads,
            np.array([request.key for request in chosen], np.uint64),
            [request.branch.num_tokens for request in chosen],
            [request.params.temperature == 0 for request in chosen],
            [max_nodes[number] for number in asked],
            *self._limits,
        )
        for number, draft in zip(asked, drafts, strict=True):
            trees[number] = DraftTree(draft)
        return trees

    def _probabilities(self, requests: Sequence[DraftRequest]) -> NDArray[np.float32]:
        """[num_requests * num_heads, vocab_size], as the requests draw."""
        ops, count = self.engine.ops, self.num_heads
        rows = [request.branch.hidden_row for request in requests]
        hidden = np.stack([row.tensor.numpy()[row.number] for row in rows if row is not None])
        y = ops.linear(torch.from_numpy(hidden), self._blocks).numpy()
        with np.errstate(over="ignore"):  # silu(y) = y / (1 + exp(-y)) is 0 there
            blocks = (y / (1 + np.exp(-y))).reshape(len(rows), count, -1)
        states = (hidden[:, None] + blocks).reshape(len(rows) * count, -1)
        logits = self.engine.model.logits(torch.from_numpy(states))
        params = [request.params for request in requests for _ in range(count)]
        greedy = [p.temperature == 0 for p in params]
        filters = (
            # Of a greedy branch the whole distribution is looked at.
            np.array([1 if g else p.temperature for p, g in zip(params, greedy)], np.float32),
            np.array([0 if g else p.top_k for p, g in zip(params, greedy)], np.int32),
            np.array([1 if g else p.top_p for p, g in zip(params, greedy)], np.float32),
            np.array([0 if g else p.min_p for p, g in zip(params, greedy)], np.float32),
        )
        p: NDArray[np.float32] = ops.probabilities(logits, *filters).numpy()
        return p

    def observe(self, branch: Branch) -> None:
        """Nothing: the hidden state is the branch's own."""

    def forget(self, branch: Branch) -> None:
        """Nothing, likewise."""
