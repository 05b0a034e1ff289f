"""The op table on a GPU: a Triton kernel for each operation but the products, which are torch's."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel_decode.kernels.branch_attention import branch_attention
from parallel_decode.kernels.compact_kv import compact_kv
from parallel_decode.kernels.copy_blocks import copy_blocks
from parallel_decode.kernels.device_plan import DevicePlan, DevicePlans
from parallel_decode.kernels.flash_prefill import FlashPrefill
from parallel_decode.kernels.group_quantized import GroupQuantized
from parallel_decode.kernels.kv_store import kv_store
from parallel_decode.kernels.launch import AttentionShape, Card, card_named
from parallel_decode.kernels.logit_stats import logit_stats
from parallel_decode.kernels.plan import BLOCK_SIZE, BranchPlan
from parallel_decode.kernels.probabilities import probabilities
from parallel_decode.kernels.rms_norm import add_rms_norm, rms_norm
from parallel_decode.kernels.rope import rope
from parallel_decode.kernels.rows import ACTIVATION_DTYPES
from parallel_decode.kernels.sample import sample
from parallel_decode.kernels.silu_mul import silu_mul
from parallel_decode.kernels.verify import verify_tree
from parallel_decode.kernels.verify_greedy import verify_greedy
from parallel_decode.kernels.verify_traversal import verify_traversal
from parallel_decode.kernels.verify_typical import verify_typical


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
    """The op table of `reference.ReferenceOps` in Triton. Activations are of the weights' dtype.

    Args:
        device: where weights and activations are.
        card: whose constants plans are made by; None for the card that is there.
    """

    name = "triton"
    head_dim_innermost = True

    def __init__(self, device: torch.device | str, card: Card | None = None) -> None:
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else ""
        self.plans = DevicePlans(card or card_named(name), self.device)
        self._flash = FlashPrefill.installed(self.device)

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
            weight.to(self.device).contiguous(),
            None if bias is None else bias.to(self.device, weight.dtype),
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

    def branch_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: BranchPlan,
        softmax_scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        plain = softcap is None and k_scale is None and v_scale is None
        if self._flash is not None and plain and self._flash.takes(q, k_cache, plan):
            return self._flash(q, k_cache, v_cache, plan, softmax_scale, sliding_window)
        device_plan = self._device_plan(q, k_cache, plan, sliding_window)
        return branch_attention(
            q,
            k_cache,
            v_cache,
            device_plan,
            softmax_scale,
            sliding_window,
            softcap,
            k_scale,
            v_scale,
        )

    def _device_plan(
        self, q: Tensor, k_cache: Tensor, plan: BranchPlan, sliding_window: int | None
    ) -> DevicePlan:
        _, num_heads, head_dim = q.shape
        num_kv_heads, item_bytes = k_cache.shape[1], k_cache.element_size()
        shape = AttentionShape(num_heads, num_kv_heads, head_dim, item_bytes, sliding_window)
        return self.plans.of(plan, shape)

    def copy_blocks(self, storage: Tensor, copies: list[tuple[int, int]]) -> None:
        copy_blocks(storage, copies)

    # ---- drafts ----

    verify_greedy = staticmethod(verify_greedy)
    verify_tree = staticmethod(verify_tree)
    verify_traversal = staticmethod(verify_traversal)
    verify_typical = staticmethod(verify_typical)

    def compact_kv(
        self,
        storage: Tensor,
        num_kv_heads: int,
        head_dim: int,
        source_slots: Tensor,
        target_slots: Tensor,
    ) -> None:
        planes = storage.view(*storage.shape[:3], num_kv_heads, BLOCK_SIZE, head_dim)
        compact_kv(planes, source_slots, target_slots)

    # ---- logits ----

    def logit_stats(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lse, entropy, mean = torch.stack(logit_stats(logits)).cpu().numpy()
        return lse, entropy, mean

    def top_logits(self, logits: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        # No kernel of our own: it is asked for where confidence is, once a step.
        values, tokens = logits.topk(k)
        return values.cpu().numpy(), tokens.cpu().numpy()

    def mask_logits(self, logits: Tensor, words: np.ndarray) -> Tensor:
        # No kernel of our own: the masks come from the host, an eighth of a byte a token.
        on_device = torch.from_numpy(words).to(logits.device).unsqueeze(2)
        bits = (on_device >> torch.arange(32, device=logits.device)) & 1
        return logits.where(bits.flatten(1)[:, : logits.shape[1]].bool(), -torch.inf)

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

    def probabilities(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
    ) -> Tensor:
        return probabilities(logits, temperature, top_k, top_p, min_p)
