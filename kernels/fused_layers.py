"""`FusedLayers`: all layers of a transformer in one call into C++."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.kv_format import KV_TYPES
from parallel_decode.kernels.plan import BLOCK_SIZE, BranchPlan


class FusedLayers:
    """Bit for bit what `Transformer.forward` composes of the CPU operations.

    Args:
        ops: the native operations.
        model: a `Transformer`, or what has its weights, packed by the same operations. With a
            `fusion` its layers begin with fusion(feature of the token before, embedding).
    """

    def __init__(self, ops: _C.CpuOps, model: Any) -> None:
        config = model.config
        check_heads(config.num_heads, config.num_kv_heads, config.head_dim)
        # The native side holds addresses: what they point to lives as long as the model.
        self._model = model
        self._ops = ops
        self._decoder = _C.Decoder(
            ops,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            len(model.cos),
            config.rms_norm_eps,
            config.softmax_scale,
            model.cos.data_ptr(),
            model.sin.data_ptr(),
            model.embedding.weight,
            model.first_norm.data_ptr(),
        )
        for layer in model.layers:
            linears = (layer.qkv, layer.output, layer.gate_up, layer.down)
            self._decoder.add_layer(
                *(_C.DecoderLinear(linear.weight, _address(linear.bias)) for linear in linears),
                _address(layer.q_norm),
                _address(layer.k_norm),
                layer.post_attention_norm.data_ptr(),
                layer.next_norm.data_ptr(),
                layer.sliding_window or 0,
                layer.cache_layer,
            )
        if model.fusion is not None:
            self._decoder.set_fusion(_C.DecoderLinear(model.fusion.weight, 0))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        plan: BranchPlan,
        kv_cache: Any,
    ) -> Tensor:
        """See `Transformer.forward`; ValueError for a token or a position out of range."""
        config, storage = self._model.config, kv_cache.storage
        rows = plan.num_rows
        _check_indices(rows, input_ids, positions, slot_mapping)
        out = torch.empty(rows, config.hidden_size)
        self._decoder.forward(
            input_ids.data_ptr(),
            positions.data_ptr(),
            slot_mapping.data_ptr(),
            plan.native,
            KV_TYPES[storage.dtype],
            storage.data_ptr(),
            storage.stride(1) * storage.element_size(),
            out.data_ptr(),
        )
        return out

    def store(
        self,
        input_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        features: Tensor,
        storage: Tensor,
    ) -> None:
        """Stores the keys and values that the first layer has of these rows, and computes nothing
        else.

        Args:
            features: [T, hidden_size] fp32, of the token before each.
            storage: [num_layers, 2, num_blocks, items], as of a `KVCache`.
        """
        rows, hidden = len(input_ids), self._model.config.hidden_size
        _check_indices(rows, input_ids, positions, slot_mapping)
        if features.dtype != torch.float32 or tuple(features.shape) != (rows, hidden):
            raise ValueError(
                f"features must be fp32 [{rows}, {hidden}], got {features.dtype}"
                f" {tuple(features.shape)}"
            )
        self._decoder.store(
            input_ids.data_ptr(),
            positions.data_ptr(),
            slot_mapping.data_ptr(),
            features.contiguous().data_ptr(),
            rows,
            KV_TYPES[storage.dtype],
            storage.data_ptr(),
            storage.stride(1) * storage.element_size(),
        )

    def draft_combs(
        self,
        storage: Tensor,
        branches: Sequence[_C.DraftBranch],
        min_prob: float,
        num_siblings: int = 0,
    ) -> list[_C.DraftColumns]:
        """What the model says next for each branch, token after token, and with `num_siblings` what
        else it may say there. See csrc/draft_loop.h.

        Args:
            storage: [num_layers, 2, num_blocks, items], as of a `KVCache`.
            branches: their tables are of the storage's blocks.

        Raises:
            IndexError or ValueError: the pool has no room for the branches' pending tokens.
        """
        model = self._model
        head = model.lm_head
        combs: list[_C.DraftColumns] = _C.draft_combs(
            self._decoder,
            self._ops,
            _C.DecoderLinear(head.weight, _address(head.bias)),
            KV_TYPES[storage.dtype],
            storage.data_ptr(),
            storage.stride(1) * storage.element_size(),
            storage.shape[0],
            storage.shape[2],
            model.inverse_frequencies.numpy(),
            branches,
            min_prob,
            num_siblings,
        )
        return combs


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """ValueError where the attention kernels can't take this shape."""
    if num_heads % num_kv_heads or head_dim % BLOCK_SIZE or head_dim > _C.MAX_HEAD_DIM:
        raise ValueError(
            f"{num_heads} heads over {num_kv_heads} KV heads of head_dim {head_dim}: heads must"
            f" divide evenly and head_dim be a multiple of {BLOCK_SIZE} up to {_C.MAX_HEAD_DIM}"
        )


def _check_indices(rows: int, input_ids: Tensor, positions: Tensor, slot_mapping: Tensor) -> None:
    for name, x, dtype in (
        ("input_ids", input_ids, torch.int64),
        ("positions", positions, torch.int32),
        ("slot_mapping", slot_mapping, torch.int64),
    ):
        if x.dtype != dtype or tuple(x.shape) != (rows,) or not x.is_contiguous():
            raise ValueError(f"{name} must hold {rows} {dtype}, got {x.dtype} {tuple(x.shape)}")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
