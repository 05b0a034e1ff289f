"""Heads with random weights, for tests."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from parallel_decode.model.config import ModelConfig


def head_tensors(
    config: ModelConfig, num_medusa_heads: int = 3, inner: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    """All tensors of heads.safetensors, in fp32."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    hidden = config.hidden_size
    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    tensors = {
        "eagle.fusion.weight": weight(hidden, 2 * hidden),
        "eagle.input_layernorm.weight": 1 + weight(hidden),
        "eagle.self_attn.q_proj.weight": weight(q_width, hidden),
        "eagle.self_attn.k_proj.weight": weight(kv_width, hidden),
        "eagle.self_attn.v_proj.weight": weight(kv_width, hidden),
        "eagle.self_attn.o_proj.weight": weight(hidden, q_width),
        "eagle.post_attention_layernorm.weight": 1 + weight(hidden),
        "eagle.mlp.gate_proj.weight": weight(inner, hidden),
        "eagle.mlp.up_proj.weight": weight(inner, hidden),
        "eagle.mlp.down_proj.weight": weight(hidden, inner),
        "eagle.norm.weight": 1 + weight(hidden),
    }
    for number in range(num_medusa_heads):
        tensors[f"medusa.{number}.linear.weight"] = weight(hidden, hidden)
        tensors[f"medusa.{number}.linear.bias"] = weight(hidden)
    return tensors


def save_heads(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "heads.safetensors")
    return folder
