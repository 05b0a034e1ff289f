"""The op table on a GPU: a Triton kernel for each operation but the products, which are torch's."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel_decode.kernels.copy_blocks import copy_blocks
from parallel_decode.kernels.group_quantized import GroupQuantized
from parallel_decode.kernels.kv_store import kv_store
from parallel_decode.kernels.logit_stats import logit_stats
from parallel_decode.kernels.rms_norm import add_rms_norm, rms_norm
from parallel_decode.kernels.rope import rope
from parallel_decode.kernels.rows import ACTIVATION_DTYPES
from parallel_decode.kernels.sample import sample
from parallel_decode.kernels.silu_mul import silu_mul


@dataclass(frozen=True)
class DenseLinear:
    """weight: [out_features, in_features]; bias: [out_features] or None; both in the dtype of the
    activations."""

    weight: Tensor
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes


class TritonOps:
    """The op table of `reference.ReferenceOps` in Triton.

    Args:
        device: where weights and activations are.
        dtype: of weights and activations: float32, float16 or bfloat16.
    """

    name = "triton"

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        if dtype not in ACTIVATION_DTYPES:
            raise ValueError(f"activations are float32, float16 or bfloat16, not {dtype}")
        self.device = torch.device(device)
        self.dtype = dtype

    # ---- products ----

    def pack_linear(self, weight: Tensor | GroupQuantized, bias: Tensor | None) -> DenseLinear:
        if isinstance(weight, GroupQuantized):
            raise ValueError(
                "the triton backend takes weights of float32, float16 and bfloat16, not quantised"
                f" ones of {weight.bits} bits"
            )
        if weight.dtype not in ACTIVATION_DTYPES:
            raise ValueError(
                f"weights are stored as float32, float16 or bfloat16, not {weight.dtype}"
            )
        if weight.dim() != 2:
            raise ValueError(f"weight must have two dimensions, got {tuple(weight.shape)}")
        if bias is not None and tuple(bias.shape) != (len(weight),):
            raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(bias.shape)}")
        return DenseLinear(
            weight.to(self.device, self.dtype).contiguous(),
            None if bias is None else bias.to(self.device, self.dtype),
        )

    def fuse(self, model: object) -> None:
        """Layers are composed: a captured graph of the step needs no other form of them."""

    def embedding(self, table: DenseLinear, ids: Tensor) -> Tensor:
        return F.embedding(ids, table.weight)

    def linear(self, x: Tensor, layer: DenseLinear) -> Tensor:
        return F.linear(x, layer.weight, layer.bias)

    # ---- rows ----

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x, residual, weight, eps)

    def rope(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        return rope(q, k, cos, sin, positions)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return silu_mul(gate_up)

    # ---- the KV cache ----

    def kv_store(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        kv_store(k, v, k_cache, v_cache, slot_mapping)

    def copy_blocks(self, storage: Tensor, copies: list[tuple[int, int]]) -> None:
        copy_blocks(storage, copies)

    # ---- logits ----

    def logit_stats(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lse, entropy, mean = torch.stack(logit_stats(logits)).cpu().numpy()
        return lse, entropy, mean

    def sample(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
        uniform: np.ndarray,
    ) -> np.ndarray:
        tokens = sample(logits, temperature, top_k, top_p, min_p, uniform)
        return tokens.cpu().numpy()
