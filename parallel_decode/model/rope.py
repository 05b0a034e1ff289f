"""Rotary position embeddings: the frequencies of every supported scaling, and their tables.

The formulas are those of `transformers.modeling_rope_utils`, in fp32 like there.
"""

import math

import torch

from parallel_decode.model.config import ModelConfig
from parallel_decode.model.rope_scaling import RopeScaling


def inverse_frequencies(config: ModelConfig, max_seq_len: int) -> tuple[torch.Tensor, float]:
    """The angle per position of each pair of dimensions, [head_dim / 2] fp32, and the attention
    factor that multiplies cos and sin.

    `dynamic` (NTK) stretches the base with the length of the sequence. Keys in the cache must not
    change as a sequence grows, so the length here is `max_seq_len`, the context that the engine is
    opened with. Transformers recomputes it from the length seen so far; the two agree when
    transformers sees a sequence of `max_seq_len` tokens.
    """
    dim, base, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    if scaling is None:
        return 1.0 / base**exponents, 1.0
    if scaling.kind == "linear":
        return 1.0 / base**exponents / scaling.factor, 1.0
    if scaling.kind == "factors":
        factors = torch.tensor(scaling.freq_factors, dtype=torch.float32)
        return 1.0 / base**exponents / factors, 1.0
    if scaling.kind == "dynamic":
        return _dynamic(config, scaling, exponents, max_seq_len), 1.0
    if scaling.kind == "llama3":
        return _llama3(1.0 / base**exponents, scaling), 1.0
    return _yarn(config, scaling, exponents)


def rope_tables(config: ModelConfig, max_seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each [max_seq_len, head_dim / 2] fp32, row p for position p."""
    inv_freq, attention_factor = inverse_frequencies(config, max_seq_len)
    angles = torch.arange(max_seq_len, dtype=torch.float32)[:, None] * inv_freq
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def _dynamic(
    config: ModelConfig, scaling: RopeScaling, exponents: torch.Tensor, max_seq_len: int
) -> torch.Tensor:
    # base' = base * (factor * L / context - (factor - 1)) ^ (dim / (dim - 2))
    context, dim = config.max_position_embeddings, config.head_dim
    if dim == 2:
        raise ValueError("dynamic rope needs a head_dim above 2")
    length = torch.tensor(float(max(max_seq_len, context)))
    stretch = scaling.factor * length / context - (scaling.factor - 1)
    base = config.rope_theta * stretch ** (dim / (dim - 2))
    return 1.0 / base**exponents


def _llama3(inv_freq: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert context is not None and low is not None and high is not None
    # Long wavelengths are divided by the factor, short ones kept, those between interpolated.
    wavelength = 2 * math.pi / inv_freq
    scaled = torch.where(wavelength > context / low, inv_freq / scaling.factor, inv_freq)
    smooth = (context / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return torch.where(between, smoothed, scaled)


def _yarn(
    config: ModelConfig, scaling: RopeScaling, exponents: torch.Tensor
) -> tuple[torch.Tensor, float]:
    # https://arxiv.org/abs/2309.00071: dimensions that turn more than beta_fast times over the
    # original context keep their frequency, those below beta_slow are divided by the factor.
    dim, base, factor = config.head_dim, config.rope_theta, scaling.factor
    context = scaling.original_max_position_embeddings
    assert context is not None

    def dimension_of(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    pos_freqs = base**exponents
    inv_freq = 1.0 / (factor * pos_freqs) * (1 - keep) + 1.0 / pos_freqs * keep

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return inv_freq, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return inv_freq, magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return inv_freq, magnitude(1.0)
