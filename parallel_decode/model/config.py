"""`ModelConfig`: what the transformer needs to know of a checkpoint, whichever file it came from.

Numbers come from untrusted files, so every one of them has a range: a lying `num_hidden_layers` or
`max_position_embeddings` ends in a `ValueError` here instead of a huge allocation later.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_decode.model.fields import Fields
from parallel_decode.model.rope_scaling import RopeScaling, rope_from_gguf, rope_from_hf

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

# Largest values accepted from a file: above every published model, below a harmful allocation.
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 24
MAX_POSITIONS = 1 << 28


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of one decoder-only transformer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # q, k and v
    output_bias: bool = False  # o
    mlp_bias: bool = False  # gate, up and down
    qk_norm: bool = False
    sliding_window: int | None = None
    full_attention_layers: frozenset[int] = frozenset()  # exempt from the sliding window
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture {self.architecture!r} is not supported; supported: {ARCHITECTURES}"
            )
        for name, limit in (
            ("vocab_size", MAX_VOCAB),
            ("hidden_size", MAX_WIDTH),
            ("intermediate_size", MAX_WIDTH),
            ("num_layers", MAX_LAYERS),
            ("num_heads", MAX_WIDTH),
            ("num_kv_heads", MAX_WIDTH),
            ("head_dim", MAX_WIDTH),
            ("max_position_embeddings", MAX_POSITIONS),
        ):
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise ValueError(f"{name} must be between 1 and {limit}, got {value}")
        if self.num_heads * self.head_dim > MAX_WIDTH:
            raise ValueError(f"{self.num_heads} heads of {self.head_dim} are too wide")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if not 0 < self.rms_norm_eps < 1:
            raise ValueError(f"rms_norm_eps must be between 0 and 1, got {self.rms_norm_eps}")
        if not 1 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta must be finite and above 1, got {self.rope_theta}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be positive, got {self.sliding_window}")
        factors = self.rope_scaling.freq_factors if self.rope_scaling else ()
        if factors and len(factors) != self.head_dim // 2:
            raise ValueError(
                f"{len(factors)} rope frequency factors for head_dim {self.head_dim}, "
                f"expected {self.head_dim // 2}"
            )

    @property
    def sliding_windows(self) -> tuple[int | None, ...]:
        """Per layer: a query sees this many last tokens, itself included; None means all."""
        return tuple(
            None if i in self.full_attention_layers else self.sliding_window
            for i in range(self.num_layers)
        )

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """From a Hugging Face `config.json`; a missing key has the default that HF gives it."""
        get = Fields(raw, "config.json")
        architecture = raw.get("model_type")
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"config.json: model_type {architecture!r} (architectures "
                f"{raw.get('architectures')!r}) is not supported; supported: {ARCHITECTURES}"
            )
        if raw.get("quantization_config"):
            raise ValueError("config.json: quantised safetensors checkpoints are not supported")
        activation = raw.get("hidden_act", "silu")
        if activation != "silu":
            raise ValueError(f"config.json: hidden_act {activation!r} is not supported, only silu")

        qwen = architecture in ("qwen2", "qwen3")
        hidden_size = get.integer("hidden_size")
        num_heads = get.integer("num_attention_heads")
        num_layers = get.integer("num_hidden_layers")
        if not 1 <= num_layers <= MAX_LAYERS:
            raise ValueError(f"config.json: num_hidden_layers is {num_layers}")
        if num_heads < 1:
            raise ValueError(f"config.json: num_attention_heads is {num_heads}")
        kv_heads = get.optional_integer(
            "num_key_value_heads",
            {"llama": num_heads, "mistral": 8, "qwen2": 32, "qwen3": 32}[architecture],
        )
        head_dim = get.optional_integer("head_dim", 128 if architecture == "qwen3" else None)
        bias = architecture == "qwen2" or get.boolean("attention_bias", False)
        theta, scaling = rope_from_hf(get)
        sliding_window, full_attention = _hf_sliding_window(get, architecture, num_layers)
        default_context = {"llama": 2048, "mistral": 131072}.get(architecture, 32768)
        return cls(
            architecture=architecture,
            vocab_size=get.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=get.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=kv_heads if kv_heads is not None else num_heads,
            head_dim=head_dim if head_dim is not None else hidden_size // num_heads,
            rms_norm_eps=get.number("rms_norm_eps", 1e-6),
            max_position_embeddings=get.integer("max_position_embeddings", default_context),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=get.boolean("tie_word_embeddings", False),
            attention_bias=bias and architecture != "mistral",
            output_bias=bias and architecture in ("llama", "qwen3"),
            mlp_bias=architecture == "llama" and get.boolean("mlp_bias", False),
            qk_norm=architecture == "qwen3",
            sliding_window=sliding_window,
            full_attention_layers=full_attention,
            bos_id=get.optional_integer("bos_token_id", None if qwen else 1),
            eos_ids=get.integers("eos_token_id", () if qwen else (2,)),
            pad_id=get.optional_integer("pad_token_id", None),
        )

    @classmethod
    def from_gguf(
        cls,
        raw: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        rope_factors: Collection[float] = (),
    ) -> "ModelConfig":
        """From GGUF metadata, the shapes of the file's tensors (by their GGUF names, outermost
        dimension first) and the values of its tensor `rope_freqs.weight`, if it has one."""
        architecture = raw.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"GGUF architecture {architecture!r} is not supported; supported: {ARCHITECTURES}"
            )
        get = Fields(raw, "GGUF metadata", prefix=f"{architecture}.")
        if get.integer("expert_count", 0):
            raise ValueError("GGUF metadata: mixtures of experts are not supported")
        embedding = shapes.get("token_embd.weight")
        if embedding is None or len(embedding) != 2:
            raise ValueError(f"GGUF file: token_embd.weight is missing or not 2-d: {embedding}")
        hidden_size = get.integer("embedding_length")
        num_heads = get.integer("attention.head_count")
        if num_heads < 1:
            raise ValueError(f"GGUF metadata: attention.head_count is {num_heads}")
        rotary_dim = get.integer("rope.dimension_count", hidden_size // num_heads)
        head_dim = get.integer("attention.key_length", rotary_dim)
        if not head_dim == rotary_dim == get.integer("attention.value_length", head_dim):
            raise ValueError(f"GGUF metadata: rotary {rotary_dim} of head {head_dim} dimensions")
        context = get.integer("context_length")
        window = get.integer("attention.sliding_window", 0)
        if window and architecture.startswith("qwen") and window < context:
            raise ValueError(f"GGUF metadata: sliding window {window} without its layers")
        tokenizer = Fields(raw, "GGUF metadata", prefix="tokenizer.ggml.")
        ends = (tokenizer.optional_integer(f"{k}_token_id", None) for k in ("eos", "eot", "eom"))
        return cls(
            architecture=architecture,
            vocab_size=embedding[0],
            hidden_size=hidden_size,
            intermediate_size=get.integer("feed_forward_length"),
            num_layers=get.integer("block_count"),
            num_heads=num_heads,
            num_kv_heads=get.integer("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rms_norm_eps=get.number("attention.layer_norm_rms_epsilon"),
            max_position_embeddings=context,
            rope_theta=get.number("rope.freq_base", 10000.0),
            rope_scaling=rope_from_gguf(get, context, tuple(rope_factors)),
            tie_word_embeddings="output.weight" not in shapes,
            attention_bias="blk.0.attn_q.bias" in shapes,
            output_bias="blk.0.attn_output.bias" in shapes,
            mlp_bias="blk.0.ffn_gate.bias" in shapes,
            qk_norm="blk.0.attn_q_norm.weight" in shapes,
            sliding_window=window or None,
            bos_id=tokenizer.optional_integer("bos_token_id", None),
            eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
            pad_id=tokenizer.optional_integer("padding_token_id", None),
        )


def _hf_sliding_window(
    get: Fields, architecture: str, num_layers: int
) -> tuple[int | None, frozenset[int]]:
    if architecture == "llama":
        return None, frozenset()
    window = get.optional_integer("sliding_window", 4096)
    if architecture == "mistral":
        return window, frozenset()
    if window is None or not get.boolean("use_sliding_window", False):
        return None, frozenset()
    layer_types = get.raw.get("layer_types")
    if layer_types is None:
        first = get.integer("max_window_layers", 28)
        return window, frozenset(range(min(max(first, 0), num_layers)))
    known = ("full_attention", "sliding_attention")
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise ValueError(f"config.json: layer_types does not list {num_layers} layers")
    for layer_type in layer_types:
        if layer_type not in known:
            raise ValueError(f"config.json: layer type {layer_type!r} is not one of {known}")
    return window, frozenset(i for i, t in enumerate(layer_types) if t == "full_attention")
