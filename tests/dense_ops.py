"""`DenseOps`: the operations of the transformer for one sequence, without pages or plans.

Written from the formulas, not from `kernels/`: the parity tests run on it and on the kernels, so a
mistake in the model and a mistake in a kernel show up as different failures.
"""

import torch
from torch import Tensor


class DenseOps:
    """A linear layer is (weight, bias); a plan is the number of keys that are there after the
    step, whose query rows are the last tokens of these."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, bias

    def fuse(self, model: object) -> None:
        """Nothing is fused."""

    def embedding(self, table: tuple[Tensor, Tensor | None], ids: Tensor) -> Tensor:
        return table[0].float().index_select(0, ids)

    def linear(self, x: Tensor, layer: tuple[Tensor, Tensor | None]) -> Tensor:
        weight, bias = layer
        y = x @ weight.to(x.dtype).T
        return y if bias is None else y + bias

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def rope(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        turn = torch.complex(cos, sin)[positions.long()][:, None]
        turned = []
        for x in (q, k):
            half = x.shape[-1] // 2
            z = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
            turned.append(torch.cat([z.real, z.imag], -1))
        return turned[0], turned[1]

    def kv_store(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        k_cache[slot_mapping], v_cache[slot_mapping] = k, v

    def branch_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: int,
        softmax_scale: float,
        sliding_window: int | None,
    ) -> Tensor:
        num_rows, num_heads, _ = q.shape
        out = torch.empty_like(q)
        for row in range(num_rows):
            last = plan - num_rows + row
            first = 0 if sliding_window is None else max(0, last + 1 - sliding_window)
            for head in range(num_heads):
                kv_head = head * k_cache.shape[1] // num_heads
                keys = k_cache[first : last + 1, kv_head]
                weights = (keys @ q[row, head] * softmax_scale).softmax(0)
                out[row, head] = weights @ v_cache[first : last + 1, kv_head]
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        half = gate_up.shape[1] // 2
        gate, up = gate_up[:, :half], gate_up[:, half:]
        return gate * gate.sigmoid() * up


class DenseCache:
    """Keys and values by token, [num_tokens, num_kv_heads, head_dim] a layer."""

    def __init__(self, num_layers: int, num_tokens: int, num_kv_heads: int, head_dim: int) -> None:
        shape = (num_tokens, num_kv_heads, head_dim)
        self._layers = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(num_layers)]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self._layers[index]
