"""Writes small GGUF models for the tests, with llama.cpp's names, row order and metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

from parallel_decode.model import ModelConfig
from parallel_decode.model.checkpoint import expected_shapes
from parallel_decode.model.gguf_file import LAYER_NAMES, TOP_NAMES

TO_GGUF = {hf: name for name, hf in LAYER_NAMES.items()}
TOP_TO_GGUF = {hf: name for name, hf in TOP_NAMES.items()}


def gguf_name(name: str) -> str:
    if name in TOP_TO_GGUF:
        return TOP_TO_GGUF[name]
    _, _, index, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{index}.{TO_GGUF[part]}.{kind}"


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    split = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def random_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """By Hugging Face names and in their row order."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + ("norm" in name)
        for name, shape in expected_shapes(config)
    }


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, torch.Tensor],
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
) -> None:
    """Matrices as `quant`, the rest as F32; the vocabulary is the 256 bytes and an end token."""
    writer = gguf.GGUFWriter(path, config.architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "<|end|>"])
    writer.add_token_merges(["t h"])
    writer.add_token_types([1] * 257 + [3])
    writer.add_eos_token_id(257)
    writer.add_chat_template("{{ messages[0].content }}")
    extra(writer)
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if config.architecture == "llama" and ".q_proj." in name:
            values = permuted(values, config.num_heads)
        if config.architecture == "llama" and ".k_proj." in name:
            values = permuted(values, config.num_kv_heads)
        kind = quant if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            gguf_name(name),
            gguf.quants.quantize(np.ascontiguousarray(values), kind),
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
