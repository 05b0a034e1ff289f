"""Attention of whole prompts and long chunks by flash-attn, where it is installed.

A chunk's rows are many and its keys are its own, so there is nothing to share and much to multiply:
what flash-attn is best at. Its keys are gathered from their pages first, one copy of
2 * num_tokens * head_dim numbers a KV head, since its paged kernels ask for pages of 256 tokens.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from parallel_decode.kernels.plan import BranchPlan

MIN_ROWS = 128
"""Below, a launch over pages is faster than the copy."""
MAX_HEAD_DIM = 256


class FlashPrefill:
    """`branch_attention` of steps in which every sequence has MIN_ROWS rows or more.

    Args:
        device: "cuda": flash-attn knows no other.
        attend: `flash_attn.flash_attn_varlen_func` or what stands for it.
    """

    def __init__(self, device: torch.device, attend: Callable[..., Tensor]) -> None:
        self._device = device
        self._attend = attend
        self._step: BranchPlan | None = None

    @classmethod
    def installed(cls, device: torch.device) -> "FlashPrefill | None":
        """None where flash-attn is missing or has no card to run on."""
        if device.type != "cuda" or find_spec("flash_attn") is None:
            return None
        return cls(device, import_module("flash_attn").flash_attn_varlen_func)

    def takes(self, q: Tensor, k_cache: Tensor, plan: BranchPlan) -> bool:
        return (
            plan.draft_masks is None
            and plan.native.num_rotations == 1
            and int(plan.rows.min()) >= MIN_ROWS
            and q.dtype in (torch.float16, torch.bfloat16)
            and k_cache.dtype == q.dtype
            and q.shape[2] <= MAX_HEAD_DIM
        )

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: BranchPlan,
        softmax_scale: float,
        sliding_window: int | None = None,
    ) -> Tensor:
        if plan is not self._step:
            self._begin(plan)
        # [num_keys, num_kv_heads, head_dim]; blocks and lanes lie apart, so the result leads.
        keys = k_cache[self._blocks, :, :, self._lanes]
        values = v_cache[self._blocks, :, self._lanes]
        window = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
        plan.num_launches = 1
        return self._attend(
            q.contiguous(),
            keys,
            values,
            self._cu_seqlens_q,
            self._cu_seqlens_k,
            int(plan.rows.max()),
            self._max_seqlen_k,
            softmax_scale=softmax_scale,
            causal=True,
            window_size=window,
        )

    def _begin(self, plan: BranchPlan) -> None:
        """Where the keys of each sequence lie, for all layers of the step."""
        entries = [table.entries() for table in plan.tables]
        sizes = [e[:, 2] - e[:, 1] for e in entries]
        every, size = np.concatenate(entries), np.concatenate(sizes)
        first = np.cumsum(size) - size
        within = np.arange(int(size.sum())) - np.repeat(first, size)
        seqlens = np.array([int(s.sum()) for s in sizes])
        self._blocks = self._on_device(np.repeat(every[:, 0], size).astype(np.int64))
        self._lanes = self._on_device((np.repeat(every[:, 1], size) + within).astype(np.int64))
        self._cu_seqlens_q = self._on_device(np.cumsum([0, *plan.rows]).astype(np.int32))
        self._cu_seqlens_k = self._on_device(np.cumsum([0, *seqlens]).astype(np.int32))
        self._max_seqlen_k = int(seqlens.max())
        self._step = plan

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)
