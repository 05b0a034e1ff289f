"""`Transformer`: one decoder-only transformer for Llama, Mistral, Qwen2 and Qwen3.

It knows nothing of pages, branches or batches. What a token may see is in `plan`, where its keys
go is in `slot_mapping`, and every computation is an operation of `ops`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from parallel_decode.kernels import Ops
from parallel_decode.model.config import ModelConfig
from parallel_decode.model.rope import inverse_frequencies, rope_tables
from parallel_decode.model.stored_weight import stored_weight


class KVCache(Protocol):
    storage: Tensor

    def layer(self, index: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Layer:
    """Packed weights of one layer; norms are fp32."""

    qkv: Any
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Any
    post_attention_norm: Tensor
    gate_up: Any
    down: Any
    next_norm: Tensor  # the input norm of the following layer, or the final norm
    sliding_window: int | None
    cache_layer: int  # where its keys and values are in the cache


class Transformer:
    """
    Args:
        tensors: by Hugging Face names; each is read once and released after it has been packed.
        dtype: how weights are stored, one of `stored_weight.WEIGHT_DTYPES`.
        max_seq_len: positions run from 0 to max_seq_len - 1.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        ops: Ops,
        dtype: str,
        max_seq_len: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if max_seq_len < 1:
            raise ValueError(f"max_seq_len must be positive, got {max_seq_len}")
        self.config = config
        self.ops = ops
        self.max_seq_len = max_seq_len
        self.cos, self.sin = (t.to(device) for t in rope_tables(config, max_seq_len))
        # [head_dim / 2] fp32, for reading keys at other positions than those of their storing.
        self.inverse_frequencies = inverse_frequencies(config, max_seq_len)[0]

        def norm(name: str) -> Tensor:
            return tensors[name].to(device, torch.float32).contiguous()

        def linear(prefix: str, *names: str, bias: bool, dtype: str = dtype) -> Any:
            weight = stored_weight(tensors, [f"{prefix}{n}.weight" for n in names], dtype, device)
            biases = [tensors[f"{prefix}{name}.bias"].to(device) for name in names] if bias else []
            return ops.pack_linear(weight, torch.cat(biases).float() if bias else None)

        # Rounding these costs more than rounding a layer: eight bits are the least.
        ends = "int8" if dtype == "int4" else dtype
        self.embedding = linear("model.", "embed_tokens", bias=False, dtype=ends)
        self.lm_head = (
            self.embedding
            if config.tie_word_embeddings
            else linear("", "lm_head", bias=False, dtype=ends)
        )
        self.first_norm = norm("model.layers.0.input_layernorm.weight")
        self.layers = []
        for i, sliding_window in enumerate(config.sliding_windows):
            prefix = f"model.layers.{i}."
            attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
            following = f"model.layers.{i + 1}.input_layernorm"
            following = following if i + 1 < config.num_layers else "model.norm"
            self.layers.append(
                Layer(
                    qkv=linear(attention, "q_proj", "k_proj", "v_proj", bias=config.attention_bias),
                    q_norm=norm(f"{attention}q_norm.weight") if config.qk_norm else None,
                    k_norm=norm(f"{attention}k_norm.weight") if config.qk_norm else None,
                    output=linear(attention, "o_proj", bias=config.output_bias),
                    post_attention_norm=norm(f"{prefix}post_attention_layernorm.weight"),
                    gate_up=linear(mlp, "gate_proj", "up_proj", bias=config.mlp_bias),
                    down=linear(mlp, "down_proj", bias=config.mlp_bias),
                    next_norm=norm(f"{following}.weight"),
                    sliding_window=sliding_window,
                    cache_layer=i,
                )
            )
        self.fusion = None  # it begins with embeddings alone; see FusedLayers
        self._fused = ops.fuse(self)

    def keep_layers(self, kept: Sequence[int]) -> Transformer:
        """The same model without its other layers, on the same packed weights. Those that stay keep
        their places in the cache, where they read what the whole model has stored.

        Raises:
            ValueError: `kept` does not rise within the model's layers, or names none.
        """
        count = len(self.layers)
        if list(kept) != sorted(set(kept)) or not kept or not 0 <= kept[0] <= kept[-1] < count:
            raise ValueError(f"layers must rise from 0 to {count - 1} at the most, got {kept}")
        # The norm in front of each layer, and the last one.
        norms = [self.first_norm, *(layer.next_norm for layer in self.layers)]
        view = copy.copy(self)
        view.first_norm = norms[kept[0]]
        view.layers = [
            replace(self.layers[number], next_norm=norms[following])
            for number, following in zip(kept, [*kept[1:], count], strict=True)
        ]
        view._fused = self.ops.fuse(view)
        return view

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed matrices."""
        linears = [self.embedding]
        if self.lm_head is not self.embedding:
            linears.append(self.lm_head)
        for layer in self.layers:
            linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
        return sum(linear.num_bytes for linear in linears)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        plan: Any,
        kv_cache: KVCache,
    ) -> Tensor:
        """input_ids: [T] int64, positions: [T] int32, slot_mapping: [T] int64 -> hidden states
        after the final norm, [T, hidden_size] fp32."""
        if self._fused is not None:
            return self._fused.forward(input_ids, positions, slot_mapping, plan, kv_cache)
        return self.compose(input_ids, positions, slot_mapping, plan, kv_cache)

    def compose(
        self,
        input_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        plan: Any,
        kv_cache: KVCache,
    ) -> Tensor:
        """`forward`, one operation at a time: the definition of what a backend may fuse."""
        config, ops = self.config, self.ops
        eps, scale = config.rms_norm_eps, config.softmax_scale
        num_heads, num_kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        split = (num_heads, num_kv_heads, num_kv_heads)
        num_tokens = input_ids.shape[0]

        residual = ops.embedding(self.embedding, input_ids)
        x = ops.rms_norm(residual, self.first_norm, eps)
        for layer in self.layers:
            qkv = ops.linear(x, layer.qkv).view(num_tokens, sum(split), head_dim)
            q, k, v = qkv.split(split, dim=1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = ops.rms_norm(q, layer.q_norm, eps), ops.rms_norm(k, layer.k_norm, eps)
            q, k = ops.rope(q, k, self.cos, self.sin, positions)
            k_cache, v_cache = kv_cache.layer(layer.cache_layer)
            ops.kv_store(k, v, k_cache, v_cache, slot_mapping)
            x = ops.branch_attention(q, k_cache, v_cache, plan, scale, layer.sliding_window)
            x = ops.linear(x.view(num_tokens, num_heads * head_dim), layer.output)
            x, residual = ops.add_rms_norm(x, residual, layer.post_attention_norm, eps)
            x = ops.linear(ops.silu_mul(ops.linear(x, layer.gate_up)), layer.down)
            x, residual = ops.add_rms_norm(x, residual, layer.next_norm, eps)
        return x

    @property
    def fused(self) -> Any | None:
        """All layers in one call, with what else a backend then can do; None where it has none."""
        return self._fused

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [R, hidden_size] fp32 -> [R, vocab_size] fp32."""
        return self.ops.linear(hidden, self.lm_head)
