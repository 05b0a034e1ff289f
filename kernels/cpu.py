"""The op table on the CPU: checks tensors, then hands their addresses to csrc.

A row of any result has the same bits alone and in any batch, with a shared or a copied prefix, on
any number of threads and with any instruction set.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.cpu_drafts import CpuDrafts
from parallel_decode.kernels.fused_layers import FusedLayers, check_heads
from parallel_decode.kernels.group_quantized import GROUP_SIZE, GroupQuantized
from parallel_decode.kernels.kv_format import KV_TYPES, cache_shapes
from parallel_decode.kernels.plan import BranchPlan

WEIGHT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8, INT4_BYTES, INT4 = 3, 4, 5


@dataclass(frozen=True)
class PackedLinear:
    """A weight in panels of 16 columns; bias: [out_features] fp32 or None."""

    weight: _C.PackedWeight
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.in_features

    @property
    def out_features(self) -> int:
        return self.weight.out_features

    @property
    def num_bytes(self) -> int:
        return self.weight.num_bytes


class CpuOps(CpuDrafts):
    """The op table of `reference.ReferenceOps` in C++.

    Args:
        isa: "best" or a name of `_C.available_isas()`; ValueError where this machine can't run it.
    """

    name = "cpu"
    head_dim_innermost = False
    plans = None

    def __init__(self, isa: str = "best") -> None:
        self.native = _C.CpuOps(isa)
        self._arena = _C.Arena()

    @property
    def isa(self) -> str:
        return self.native.isa

    def pack_linear(self, weight: Tensor | GroupQuantized, bias: Tensor | None) -> PackedLinear:
        if len(weight.shape) != 2:
            raise ValueError(f"weight must have two dimensions, got {tuple(weight.shape)}")
        rows, columns = weight.shape
        if bias is not None:
            if tuple(bias.shape) != (rows,):
                raise ValueError(f"bias must have shape ({rows},), got {tuple(bias.shape)}")
            bias = bias.float().contiguous()
        return PackedLinear(_packed(self._arena, weight, rows, columns), bias)

    def fuse(self, model: Any) -> FusedLayers:
        """All layers of `model` in one call, bit for bit what its `forward` composes."""
        return FusedLayers(self.native, model)

    def embedding(self, table: PackedLinear, ids: Tensor) -> Tensor:
        ids = ids.to(torch.int64).contiguous()
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < table.out_features:
            raise ValueError(
                f"token ids must lie in [0, {table.out_features}), got {int(ids.min())}"
                f" to {int(ids.max())}"
            )
        out = torch.empty(len(ids), table.in_features)
        _C.embedding(table.weight, ids.data_ptr(), out.data_ptr(), len(ids))
        return out

    def linear(self, x: Tensor, layer: PackedLinear) -> Tensor:
        _check_rows("x", x, layer.in_features)
        out = torch.empty(x.shape[0], layer.out_features)
        bias = 0 if layer.bias is None else layer.bias.data_ptr()
        self.native.linear(
            x.data_ptr(), x.stride(0), layer.weight, bias, out.data_ptr(), out.stride(0), len(x)
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        columns = weight.shape[0]
        rows = x if x.dim() == 2 else x.reshape(-1, columns)
        _check_rows("x", rows, columns)
        out = torch.empty(x.shape)
        self.native.rms_norm(
            rows.data_ptr(),
            rows.stride(0),
            0,
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            len(rows),
            columns,
        )
        return out

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        columns = weight.shape[0]
        _check_rows("x", x, columns)
        _check_rows("residual", residual, columns)
        if not residual.is_contiguous() or len(residual) != len(x):
            raise ValueError(
                f"residual must be contiguous with {len(x)} rows, got {tuple(residual.shape)}"
            )
        out = torch.empty(x.shape)
        self.native.rms_norm(
            x.data_ptr(),
            x.stride(0),
            residual.data_ptr(),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            len(x),
            columns,
        )
        return out, residual

    def rope(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        for x in (q, k):
            num_tokens, num_heads, head_dim = x.shape
            _check_heads("q and k", x, num_heads, head_dim)
            if tuple(cos.shape[1:]) != (head_dim // 2,) or not cos.is_contiguous():
                raise ValueError(f"cos must be [*, {head_dim // 2}], got {tuple(cos.shape)}")
            self.native.rope(
                x.data_ptr(),
                x.stride(0),
                num_tokens,
                num_heads,
                head_dim,
                cos.data_ptr(),
                sin.data_ptr(),
                positions.data_ptr(),
            )
        return q, k

    def kv_store(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        num_kv_heads, head_dim = k.shape[1:]
        for name, x in (("k", k), ("v", v)):
            _check_heads(name, x, num_kv_heads, head_dim)
        _check_caches(k_cache, v_cache, num_kv_heads, head_dim)
        if slot_mapping.dtype != torch.int64 or len(slot_mapping) != len(k):
            raise ValueError(f"slot_mapping must hold {len(k)} int64, got {slot_mapping.shape}")
        self.native.kv_store(
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            KV_TYPES[k_cache.dtype],
            slot_mapping.data_ptr(),
            len(k),
            num_kv_heads,
            head_dim,
        )

    def branch_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: BranchPlan,
        softmax_scale: float,
        sliding_window: int | None = None,
    ) -> Tensor:
        num_rows, num_heads, head_dim = q.shape
        num_kv_heads = k_cache.shape[1]
        _check_heads("q", q, num_heads, head_dim)
        if num_rows != plan.num_rows:
            raise ValueError(f"the plan has {plan.num_rows} rows, q has {num_rows}")
        check_heads(num_heads, num_kv_heads, head_dim)
        _check_caches(k_cache, v_cache, num_kv_heads, head_dim)
        out = torch.empty(num_rows, num_heads, head_dim)
        self.native.attention(
            q.data_ptr(),
            q.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            KV_TYPES[k_cache.dtype],
            out.data_ptr(),
            num_heads,
            num_kv_heads,
            head_dim,
            softmax_scale,
            sliding_window or 0,
            plan.native,
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        columns = gate_up.shape[1] // 2
        _check_rows("gate_up", gate_up, 2 * columns)
        out = torch.empty(len(gate_up), columns)
        self.native.silu_mul(
            gate_up.data_ptr(), gate_up.stride(0), out.data_ptr(), len(gate_up), columns
        )
        return out

    def copy_blocks(self, storage: Tensor, copies: list[tuple[int, int]]) -> None:
        num_layers, _, num_blocks = storage.shape[:3]
        block_bytes = storage.stride(2) * storage.element_size()
        _C.copy_blocks(storage.data_ptr(), 2 * num_layers, num_blocks, block_bytes, copies)

    def logit_stats(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _check_rows("logits", logits, logits.shape[1])
        return self.native.logit_stats(
            logits.data_ptr(), logits.stride(0), len(logits), logits.shape[1]
        )

    def top_logits(self, logits: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        _check_rows("logits", logits, logits.shape[1])
        return self.native.top_logits(
            logits.data_ptr(), logits.stride(0), len(logits), logits.shape[1], k
        )

    def mask_logits(self, logits: Tensor, words: np.ndarray) -> Tensor:
        _check_rows("logits", logits, logits.shape[1])
        if len(words) != len(logits):
            raise ValueError(f"{len(logits)} rows of logits, {len(words)} masks")
        out = torch.empty(logits.shape)
        self.native.mask_logits(
            logits.data_ptr(), logits.stride(0), logits.shape[1], words, out.data_ptr()
        )
        return out

    def sample(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
        uniform: np.ndarray,
    ) -> np.ndarray:
        _check_rows("logits", logits, logits.shape[1])
        if len(temperature) != len(logits):
            raise ValueError(f"{len(logits)} rows of logits, {len(temperature)} temperatures")
        return self.native.sample(
            logits.data_ptr(),
            logits.stride(0),
            logits.shape[1],
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
        )

    def probabilities(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
    ) -> Tensor:
        _check_rows("logits", logits, logits.shape[1])
        if len(temperature) != len(logits):
            raise ValueError(f"{len(logits)} rows of logits, {len(temperature)} temperatures")
        p = torch.empty(logits.shape)
        self.native.probabilities(
            logits.data_ptr(),
            logits.stride(0),
            logits.shape[1],
            temperature,
            top_k,
            top_p,
            min_p,
            p.data_ptr(),
        )
        return p


def _check_rows(name: str, x: Tensor, columns: int) -> None:
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != columns or x.stride(1) != 1:
        raise ValueError(
            f"{name} must be fp32 rows of {columns}, contiguous in the last dimension, got"
            f" {x.dtype} {tuple(x.shape)} with strides {x.stride()}"
        )


def _packed(
    arena: _C.Arena, weight: Tensor | GroupQuantized, rows: int, columns: int
) -> _C.PackedWeight:
    if isinstance(weight, GroupQuantized):
        groups = -(-columns // GROUP_SIZE)
        for name, x, dtype, shape in (
            ("values", weight.values, torch.int8, (rows, groups * GROUP_SIZE)),
            ("scale", weight.scale, torch.float16, (rows, groups)),
            ("minimum", weight.minimum, torch.float16, (rows, groups)),
        ):
            if x is not None and (x.dtype != dtype or tuple(x.shape) != shape):
                raise ValueError(f"{name} must be {dtype} {shape}, got {x.dtype} {tuple(x.shape)}")
        if weight.minimum is None and weight.bits != 8:
            raise ValueError(f"a weight of {weight.bits} bits has a minimum")
        lowest, highest = (-127, 127) if weight.minimum is None else (0, 15)
        if not lowest <= int(weight.values.min()) <= int(weight.values.max()) <= highest:
            raise ValueError(f"values must lie in [{lowest}, {highest}]")
        kind = INT8 if weight.minimum is None else INT4 if weight.bits == 4 else INT4_BYTES
        values, scale = weight.values.contiguous(), weight.scale.contiguous()
        minimum = None if weight.minimum is None else weight.minimum.contiguous()
        return _C.PackedWeight.from_groups(
            arena,
            values.data_ptr(),
            scale.data_ptr(),
            0 if minimum is None else minimum.data_ptr(),
            rows,
            columns,
            kind,
        )
    if weight.dtype not in WEIGHT_TYPES:
        raise ValueError(f"weights are stored as float32, bfloat16 or float16, not {weight.dtype}")
    weight = weight.contiguous()
    return _C.PackedWeight.from_floats(
        arena, weight.data_ptr(), rows, columns, WEIGHT_TYPES[weight.dtype]
    )


def _check_caches(k_cache: Tensor, v_cache: Tensor, num_kv_heads: int, head_dim: int) -> None:
    if k_cache.dtype not in KV_TYPES or v_cache.dtype != k_cache.dtype:
        raise ValueError(f"caches of {k_cache.dtype} and {v_cache.dtype}: not one of the KV dtypes")
    shapes = cache_shapes(k_cache.dtype, len(k_cache), num_kv_heads, head_dim)
    for name, cache, shape in zip(("k_cache", "v_cache"), (k_cache, v_cache), shapes, strict=True):
        if tuple(cache.shape) != shape or not cache.is_contiguous():
            raise ValueError(
                f"{name} must be {shape} and contiguous, got {tuple(cache.shape)} with strides"
                f" {cache.stride()}"
            )


def _check_heads(name: str, x: Tensor, num_heads: int, head_dim: int) -> None:
    if (
        x.dtype != torch.float32
        or tuple(x.shape[1:]) != (num_heads, head_dim)
        or x.stride(2) != 1
        or x.stride(1) != head_dim
    ):
        raise ValueError(
            f"{name} must be fp32 [num_tokens, {num_heads}, {head_dim}] with contiguous heads, got"
            f" {x.dtype} {tuple(x.shape)} with strides {x.stride()}"
        )
