"""`FusedLayers`: all layers of a transformer in one call into C++."""

from typing import Any

import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.kv_format import KV_TYPES
from parallel_decode.kernels.plan import BranchPlan


class FusedLayers:
    """Bit for bit what `Transformer.forward` composes of the CPU operations.

    Args:
        ops: the native operations.
        model: a `Transformer` whose weights the same operations have packed.
    """

    def __init__(self, ops: _C.CpuOps, model: Any) -> None:
        config = model.config
        # The native side holds addresses: what they point to lives as long as the model.
        self._model = model
        self._decoder = _C.Decoder(
            ops,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
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
        """See `Transformer.forward`."""
        config, storage = self._model.config, kv_cache.storage
        rows = plan.num_rows
        for name, x, dtype in (
            ("input_ids", input_ids, torch.int64),
            ("positions", positions, torch.int32),
            ("slot_mapping", slot_mapping, torch.int64),
        ):
            if x.dtype != dtype or tuple(x.shape) != (rows,) or not x.is_contiguous():
                raise ValueError(f"{name} must hold {rows} {dtype}, got {x.dtype} {tuple(x.shape)}")
        if rows and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < config.vocab_size:
            raise ValueError(
                f"token ids must lie in [0, {config.vocab_size}), got {int(input_ids.min())}"
                f" to {int(input_ids.max())}"
            )
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


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
