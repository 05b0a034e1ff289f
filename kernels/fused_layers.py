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
        model: a `Transformer` whose weights the same operations have packed.
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
            )

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
        for name, x, dtype in (
            ("input_ids", input_ids, torch.int64),
            ("positions", positions, torch.int32),
            ("slot_mapping", slot_mapping, torch.int64),
        ):
            if x.dtype != dtype or tuple(x.shape) != (rows,) or not x.is_contiguous():
                raise ValueError(f"{name} must hold {rows} {dtype}, got {x.dtype} {tuple(x.shape)}")
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

    def draft_chains(
        self, kv_cache: Any, branches: Sequence[_C.DraftBranch], min_prob: float
    ) -> list[tuple[list[int], list[float]]]:
        """(tokens, their probabilities) a branch: what the model says next, token after token. See
        csrc/draft_loop.h.

        Raises:
            IndexError or ValueError: the pool has no room for the branches' pending tokens.
        """
        model, storage = self._model, kv_cache.storage
        head = model.lm_head
        chains: list[tuple[list[int], list[float]]] = self._decoder.draft_chains(
            self._ops,
            _C.DecoderLinear(head.weight, _address(head.bias)),
            KV_TYPES[storage.dtype],
            storage.data_ptr(),
            storage.stride(1) * storage.element_size(),
            model.config.num_layers,
            storage.shape[2],
            model.inverse_frequencies.numpy(),
            branches,
            min_prob,
        )
        return chains


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """ValueError where the attention kernels can't take this shape."""
    if num_heads % num_kv_heads or head_dim % BLOCK_SIZE or head_dim > _C.MAX_HEAD_DIM:
        raise ValueError(
            f"{num_heads} heads over {num_kv_heads} KV heads of head_dim {head_dim}: heads must"
            f" divide evenly and head_dim be a multiple of {BLOCK_SIZE} up to {_C.MAX_HEAD_DIM}"
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
