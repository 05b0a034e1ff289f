"""Drafts of one trained decoder layer that goes on from the model's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode.engine import Engine
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.row_observer import ComputedRows, RowObserver
from parallel_decode.kernels.fused_layers import FusedLayers
from parallel_decode.model.stored_weight import stored_weight
from parallel_decode.model.transformer import Layer, Transformer
from parallel_decode.speculation.self_draft import DraftLimits, SelfDrafter, fused_layers
from parallel_decode.speculation.trained_heads import TrainedHeads


class EagleHead:
    """One decoder layer on top of a model, with the model's embedding and output matrix:

        f'(i) = norm(layer(fusion [f(i - 1); embedding of token i])),  token i + 1 ~ lm_head f'(i).

    f is the model's hidden state after its final norm, and f' stands in for it where the model
    hasn't been yet (Li et al. 2024, "EAGLE").

    Args:
        model: on the CPU backend.
        tensors: names and shapes as `TrainedHeads` has checked them.
        dtype: how weights are stored, one of `stored_weight.WEIGHT_DTYPES`.
    """

    def __init__(self, model: Transformer, tensors: Mapping[str, Tensor], dtype: str) -> None:
        self.config = model.config
        self.cos, self.sin = model.cos, model.sin
        self.inverse_frequencies = model.inverse_frequencies
        self.embedding, self.lm_head = model.embedding, model.lm_head

        def norm(name: str) -> Tensor:
            return tensors[f"{name}.weight"].float().contiguous()

        def linear(*names: str) -> Any:
            weights = stored_weight(tensors, [f"{name}.weight" for name in names], dtype)
            return model.ops.pack_linear(weights, None)

        self.fusion = linear("fusion")
        self.first_norm = norm("input_layernorm")
        self.layers = [
            Layer(
                qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                q_norm=None,
                k_norm=None,
                output=linear("self_attn.o_proj"),
                post_attention_norm=norm("post_attention_layernorm"),
                gate_up=linear("mlp.gate_proj", "mlp.up_proj"),
                down=linear("mlp.down_proj"),
                next_norm=norm("norm"),
                sliding_window=None,
                cache_layer=0,
            )
        ]
        fused = model.ops.fuse(self)
        assert fused is not None  # the backend is the C++ one
        self.fused: FusedLayers = fused


class EagleDrafter(SelfDrafter):
    """EAGLE (Li et al. 2024), trained through its own drafts as EAGLE-3 is (Li et al. 2025).

    Its keys are a further layer in the blocks of the engine's cache: whatever forks, is rolled
    back, moved or shared there does so for the head as well. They are stored as the model computes,
    for the prompt too; what was computed before it became the engine's drafter it reads as zeros,
    and drafts worse. Behind a token whose hidden state isn't known, after a rollback, it drafts
    nothing.

    Args:
        engine: whose branches are drafted for, on the CPU backend.
        heads: trained for its model, or where they are, see `TrainedHeads.load`; those of the
            bundled model if not given.
        max_depth: tokens of a chain, at the most.
        min_prob: of a path, below which it ends.
        num_siblings: other guesses at each place of the chain.

    Raises:
        ValueError: the engine is on another backend, there is no such head, it doesn't fit the
            model, or a number is out of range.
    """

    def __init__(
        self,
        engine: Engine,
        heads: TrainedHeads | str | Path | None = None,
        max_depth: int = 24,
        min_prob: float = 0.02,
        num_siblings: int = 1,
    ) -> None:
        fused_layers(engine)
        if not isinstance(heads, TrainedHeads):
            heads = TrainedHeads.load(engine.name if heads is None else heads, engine.config)
        if not heads.eagle:
            raise ValueError(f"{heads.path}: no EAGLE head is there")
        head = EagleHead(engine.model, heads.eagle, engine.placement.dtype)
        cache = engine.cache.storage
        # Zeros take no memory before they are written.
        storage = torch.zeros(1, *cache.shape[1:], dtype=cache.dtype)
        limits = DraftLimits(max_depth, min_prob, num_siblings)
        super().__init__(engine, head.fused, storage, limits)
        self._observer = _Keys(head.fused, storage)

    @property
    def row_observer(self) -> RowObserver:
        """See `Drafter.row_observer`."""
        return self._observer

    def _can_draft(self, branch: Branch) -> bool:
        return branch.num_pending == 1 and branch.hidden_row is not None

    def _features(self, branch: Branch) -> NDArray[np.float32]:
        row = branch.hidden_row
        assert row is not None
        feature: NDArray[np.float32] = row.tensor.numpy()[row.number]
        return feature


class _Keys:
    """Stores the head's keys of all that the model computes."""

    def __init__(self, layers: FusedLayers, storage: Tensor) -> None:
        self._layers = layers
        self.storage = storage

    def computed(self, rows: ComputedRows) -> None:
        """See `RowObserver.computed`."""
        self._layers.store(
            torch.from_numpy(rows.input_ids),
            torch.from_numpy(rows.positions),
            torch.from_numpy(rows.slots),
            rows.features(),
            self.storage,
        )
