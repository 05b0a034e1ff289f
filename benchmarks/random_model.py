"""Random weights of a model's shape, made one at a time as they are asked for."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from parallel_decode.model.config import ModelConfig

LLAMA_3_8B = ModelConfig(
    architecture="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position_embeddings=131072,
    rope_theta=500000.0,
)
TINY = ModelConfig(
    architecture="llama",
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_position_embeddings=512,
)


class RandomTensors(Mapping[str, Tensor]):
    """Tensors by Hugging Face names. Matrices keep the size of what passes through them."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        hidden, inner = config.hidden_size, config.intermediate_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (config.vocab_size, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (config.vocab_size, hidden),
        }
        for i in range(config.num_layers):
            layer = f"model.layers.{i}."
            self._shapes |= {
                f"{layer}input_layernorm.weight": (hidden,),
                f"{layer}post_attention_layernorm.weight": (hidden,),
                f"{layer}self_attn.q_proj.weight": (q, hidden),
                f"{layer}self_attn.k_proj.weight": (kv, hidden),
                f"{layer}self_attn.v_proj.weight": (kv, hidden),
                f"{layer}self_attn.o_proj.weight": (hidden, q),
                f"{layer}mlp.gate_proj.weight": (inner, hidden),
                f"{layer}mlp.up_proj.weight": (inner, hidden),
                f"{layer}mlp.down_proj.weight": (hidden, inner),
            }

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, device=self._device)
        weight = torch.randn(shape, device=self._device, dtype=self._dtype)
        return weight.mul_(1 / math.sqrt(shape[1]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
