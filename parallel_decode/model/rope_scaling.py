"""`RopeScaling`: how a checkpoint stretches its rotary embeddings, read from HF or GGUF files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel_decode.model.fields import Fields

ROPE_KINDS = ("linear", "dynamic", "llama3", "yarn", "factors")


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies differ from the default ones.

    `kind` is one of `ROPE_KINDS`. `factors` divides the frequencies one by one by `freq_factors`,
    [head_dim / 2]: llama.cpp stores llama3 scaling in that way.
    """

    kind: str
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    freq_factors: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ValueError(f"rope type {self.kind!r} is not supported; supported: {ROPE_KINDS}")
        if not 0 < self.factor < 1e6:
            raise ValueError(f"rope scaling factor must be positive, got {self.factor}")
        original = self.original_max_position_embeddings
        if self.kind in ("llama3", "yarn") and (original is None or original < 1):
            raise ValueError(f"rope type {self.kind!r} needs the original context, got {original}")
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            if low is None or high is None or not 0 < low < high:
                raise ValueError(f"llama3 rope needs 0 < low_freq < high_freq, got {low}, {high}")
        if self.kind == "yarn" and not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                f"yarn rope needs 0 < beta_slow <= beta_fast, "
                f"got {self.beta_slow}, {self.beta_fast}"
            )
        if any(not 0 < f < 1e6 for f in self.freq_factors):
            raise ValueError("rope frequency factors must be positive and finite")


def rope_from_hf(get: Fields) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) of a `config.json`."""
    # transformers 5 writes `rope_parameters`; older releases `rope_theta` and `rope_scaling`,
    # whose type was first called `type` and then `rope_type`.
    nested = get.raw.get("rope_scaling") or get.raw.get("rope_parameters") or {}
    if not isinstance(nested, Mapping):
        raise ValueError(f"config.json: rope scaling must be an object, got {nested!r}")
    rope = Fields(nested, "config.json rope scaling")
    theta = rope.number("rope_theta", get.number("rope_theta", 10000.0))
    rotary = rope.number("partial_rotary_factor", get.number("partial_rotary_factor", 1.0))
    if rotary != 1.0:
        raise ValueError(f"config.json: partial_rotary_factor {rotary} is not supported")
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise ValueError(f"config.json: rope type {kind!r} is not supported")
    context = get.integer("max_position_embeddings", 2048)
    original = rope.optional_integer("original_max_position_embeddings", context)
    original = get.optional_integer("original_max_position_embeddings", original) or context
    return theta, RopeScaling(
        kind=kind,
        factor=rope.number("factor", context / original if original > 0 else 0.0),
        original_max_position_embeddings=original,
        low_freq_factor=rope.optional_number("low_freq_factor"),
        high_freq_factor=rope.optional_number("high_freq_factor"),
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.boolean("truncate", True),
    )


def rope_from_gguf(
    get: Fields, context: int, rope_factors: tuple[float, ...]
) -> RopeScaling | None:
    """The scaling that GGUF metadata describes; `rope_factors` is its tensor `rope_freqs`."""
    kind = get.raw.get(f"{get.prefix}rope.scaling.type", "none")
    if kind == "none":
        return RopeScaling("factors", freq_factors=rope_factors) if rope_factors else None
    if kind not in ("linear", "yarn") or rope_factors:
        raise ValueError(f"GGUF metadata: rope scaling {kind!r} is not supported")
    factor = get.number("rope.scaling.factor")
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    if not factor > 0:
        raise ValueError(f"GGUF metadata: rope scaling factor is {factor}")
    # llama.cpp multiplies its own factor with the one of the yarn paper.
    paper = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor=factor,
        original_max_position_embeddings=get.integer(
            "rope.scaling.original_context_length", context
        ),
        attention_factor=get.number("rope.scaling.attn_factor", 1.0) * paper,
        beta_fast=get.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=get.number("rope.scaling.yarn_beta_slow", 1.0),
    )
