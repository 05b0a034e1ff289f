"""`Ops`: what every backend offers."""

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.device_plan import DevicePlans
from parallel_decode.kernels.group_quantized import GroupQuantized
from parallel_decode.kernels.plan import BranchPlan
from parallel_decode.kernels.typical import ALPHA, EPSILON


class Ops(Protocol):
    """The operations of one backend; `kernels.reference` defines them.

    Activations are fp32 on a CPU, and have the dtype of the weights on a GPU. A handle of
    `pack_linear` belongs to the backend that made it. q, k and v are views of one projection: rows
    are strided, the last dimension is contiguous.
    """

    @property
    def name(self) -> str: ...
    @property
    def head_dim_innermost(self) -> bool:
        """Of the keys in memory; see `kv_format`."""

    @property
    def plans(self) -> DevicePlans | None:
        """Where plans of attention go to a device: these."""

    def pack_linear(self, weight: Tensor | GroupQuantized, bias: Tensor | None) -> Any: ...
    def fuse(self, model: Any) -> Any | None: ...
    def embedding(self, table: Any, ids: Tensor) -> Tensor: ...
    def linear(self, x: Tensor, layer: Any) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]: ...
    def rope(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]: ...
    def kv_store(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None: ...
    def branch_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: BranchPlan,
        softmax_scale: float,
        sliding_window: int | None,
    ) -> Tensor: ...
    def silu_mul(self, gate_up: Tensor) -> Tensor: ...
    def copy_blocks(self, storage: Tensor, copies: list[tuple[int, int]]) -> None: ...
    def compact_kv(
        self,
        storage: Tensor,
        num_kv_heads: int,
        head_dim: int,
        source_slots: Tensor,
        target_slots: Tensor,
    ) -> None: ...
    def logit_stats(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def top_logits(self, logits: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]: ...
    def mask_logits(self, logits: Tensor, words: np.ndarray) -> Tensor: ...
    def sample(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
        uniform: np.ndarray,
    ) -> np.ndarray: ...
    def probabilities(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
    ) -> Tensor: ...
    def verify_greedy(
        self,
        target_argmax: Tensor,
        draft_tokens: Tensor,
        parents: Tensor | None,
        cu_nodes: Tensor,
        max_depth: int | None = None,
    ) -> Acceptance: ...
    def verify_tree(
        self,
        p: Tensor,
        q: Tensor | None,
        draft_tokens: Tensor,
        parents: Tensor | None,
        cu_nodes: Tensor,
        keys: Tensor,
        positions: Tensor,
        replacement: bool,
        deterministic: Tensor | None = None,
        max_depth: int | None = None,
    ) -> Acceptance: ...
    def verify_traversal(
        self,
        p: Tensor,
        q: Tensor | None,
        draft_tokens: Tensor,
        parents: Tensor | None,
        cu_nodes: Tensor,
        keys: Tensor,
        positions: Tensor,
        replacement: bool,
        deterministic: Tensor | None = None,
        max_depth: int | None = None,
    ) -> Acceptance: ...
    def verify_typical(
        self,
        p: Tensor,
        draft_tokens: Tensor,
        parents: Tensor | None,
        cu_nodes: Tensor,
        keys: Tensor,
        positions: Tensor,
        epsilon: float = EPSILON,
        alpha: float = ALPHA,
        max_depth: int | None = None,
    ) -> Acceptance:
        """Not lossless."""
