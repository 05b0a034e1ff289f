"""Configurations from transformers' own files, of this and of older releases, and bad ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from parallel_decode.model import ModelConfig, RopeScaling, inverse_frequencies, rope_tables
from parallel_decode.model.config import ARCHITECTURES

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    """A config.json that leaves out all it may leave out."""
    theirs = AutoConfig.for_model(architecture, **SHAPE)
    ours = ModelConfig.from_hf({"model_type": architecture, **SHAPE})
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 64 // 32)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert ours.qk_norm == (architecture == "qwen3")
    assert ours.attention_bias == (architecture == "qwen2")
    assert not ours.output_bias


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_config_comes_back(architecture: str, tmp_path: Path) -> None:
    values = {
        **SHAPE,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "rms_norm_eps": 1e-4,
        "max_position_embeddings": 77,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 12345.0},
        "tie_word_embeddings": True,
        "bos_token_id": 5,
        "eos_token_id": [6, 7],
        "pad_token_id": 8,
    }
    AutoConfig.for_model(architecture, **values).save_pretrained(tmp_path)
    config = ModelConfig.from_hf(json.loads((tmp_path / "config.json").read_text()))
    assert config.num_kv_heads == 2
    assert config.head_dim == 6
    assert config.rms_norm_eps == 1e-4
    assert config.max_position_embeddings == 77
    assert config.rope_theta == 12345.0
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 2.0)
    assert config.tie_word_embeddings
    assert (config.bos_id, config.eos_ids, config.pad_id) == (5, (6, 7), 8)


def hf(**values: Any) -> ModelConfig:
    return ModelConfig.from_hf({"model_type": "llama", **SHAPE, **values})


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_older_spelling_of_rope(key: str) -> None:
    old = hf(rope_theta=5e5, rope_scaling={key: "llama3", **LLAMA3})
    new = hf(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    assert old == new
    assert old.rope_theta == 5e5


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "llama3": LLAMA3,
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-untruncated": {"factor": 4.0, "original_max_position_embeddings": 32, "truncate": False},
    "yarn-betas": {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-mscale": {"factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn-attention-factor": {"factor": 8.0, "attention_factor": 1.7},
    "yarn-no-factor": {"factor": None, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("head_dim", [2 * 7, 64, 128])
@pytest.mark.parametrize("length", [16, 300])
def test_frequencies_are_those_of_transformers(name: str, head_dim: int, length: int) -> None:
    kind = name.split("-")[0]
    rope = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[name]}
    shape = {**SHAPE, "head_dim": head_dim, "max_position_embeddings": 128}
    theirs = AutoConfig.for_model("llama", **shape, rope_parameters=dict(rope))
    inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=length)
    config = hf(head_dim=head_dim, max_position_embeddings=128, rope_parameters=rope)
    ours, our_factor = inverse_frequencies(config, length)
    torch.testing.assert_close(ours, inv_freq.float(), rtol=3e-7, atol=0)
    assert our_factor == pytest.approx(factor, rel=1e-12)


def test_tables() -> None:
    config = hf(head_dim=8, rope_theta=100.0)
    cos, sin = rope_tables(config, 50)
    assert cos.shape == sin.shape == (50, 4)
    angle = torch.tensor(49 * 100.0 ** (-2 / 8))
    torch.testing.assert_close(cos[49, 1], angle.cos())
    torch.testing.assert_close(sin[49, 1], angle.sin())


def test_frequency_factors() -> None:
    plain = hf(head_dim=8)
    scaled = replace(plain, rope_scaling=RopeScaling("factors", freq_factors=(1.0, 2.0, 4.0, 8.0)))
    expected = inverse_frequencies(plain, 9)[0] / torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert torch.equal(inverse_frequencies(scaled, 9)[0], expected)


def test_dynamic_frequencies_are_fixed_by_the_context() -> None:
    config = hf(
        head_dim=8,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0},
    )
    short, same, long = (inverse_frequencies(config, n)[0] for n in (10, 64, 640))
    assert torch.equal(short, same)
    assert (long[1:] < same[1:]).all()


def qwen(**values: Any) -> ModelConfig:
    raw = {"model_type": "qwen2", **SHAPE, "sliding_window": 9, "use_sliding_window": True}
    return ModelConfig.from_hf({**raw, **values})


def test_sliding_windows() -> None:
    assert hf().sliding_windows == (None,) * 4
    assert (
        hf(model_type="mistral", num_key_value_heads=8, sliding_window=9).sliding_windows
        == (9,) * 4
    )
    assert hf(model_type="mistral", sliding_window=None).sliding_windows == (None,) * 4
    assert qwen(max_window_layers=3).sliding_windows == (None, None, None, 9)
    assert qwen(max_window_layers=28).sliding_windows == (None,) * 4
    assert qwen(use_sliding_window=False, max_window_layers=0).sliding_windows == (None,) * 4
    types = ["sliding_attention", "full_attention"] * 2
    assert qwen(layer_types=types).sliding_windows == (9, None, 9, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2'.*supported"),
        ({"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
        ({"hidden_size": None}, "hidden_size must be an integer, got None"),
        ({"hidden_size": True}, "hidden_size must be an integer, got True"),
        ({"hidden_size": 2**40}, "hidden_size must be between 1 and .*1099511627776"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": -3}, "-3"),
        ({"num_key_value_heads": 0}, "num_kv_heads must be .*got 0"),
        ({"num_key_value_heads": 5}, r"num_heads \(32\) is not a multiple .*\(5\)"),
        ({"head_dim": 7}, "head_dim must be even.*7"),
        ({"vocab_size": 0}, "vocab_size must be .*got 0"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps.*0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number"),
        ({"rope_theta": -1.0}, "rope_theta.*-1"),
        ({"rope_theta": float("inf")}, "rope_theta must be a finite number"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings.*1000000000000"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer or a list"),
        ({"rope_scaling": [1]}, r"rope scaling must be an object, got \[1\]"),
        ({"rope_scaling": {"type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": {}}}, "is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be positive, got 0"),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, "llama3 rope needs"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 0.5}}, "beta_slow"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a number, got '2'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be positive, got 0"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf(**values)


@pytest.mark.parametrize("types", [["full_attention"], ["nope"] * 4, "full", [3] * 4])
def test_bad_layer_types(types: Any) -> None:
    with pytest.raises(ValueError, match="layer"):
        qwen(layer_types=types)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = [
    *SHAPE,
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "bos_token_id",
    "eos_token_id",
    "original_max_position_embeddings",
]


@given(
    st.sampled_from(ARCHITECTURES),
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3),
    st.sampled_from([None, *ROPES]),
    st.dictionaries(
        st.sampled_from(["factor", "beta_fast", "beta_slow", "original_max_position_embeddings"]),
        json_values,
    ),
)
def test_any_json_is_a_config_or_a_value_error(
    architecture: str, values: dict[str, Any], rope: str | None, rope_values: dict[str, Any]
) -> None:
    raw = {"model_type": architecture, **SHAPE}
    if rope is not None:
        raw["rope_scaling"] = {"rope_type": rope.split("-")[0], **ROPES[rope], **rope_values}
    try:
        config = ModelConfig.from_hf({**raw, **values})
        cos, _ = rope_tables(config, 8)
    except ValueError:
        return
    assert cos.shape == (8, config.head_dim // 2)
    assert len(config.sliding_windows) == config.num_layers
