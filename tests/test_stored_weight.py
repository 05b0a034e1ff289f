"""Weights on their way from a checkpoint into eight or four bits."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from parallel_decode.kernels import GroupQuantized
from parallel_decode.model import ModelConfig, open_checkpoint
from parallel_decode.model.checkpoint import Checkpoint
from parallel_decode.model.stored_weight import WEIGHT_DTYPES, stored_weight
from tests.gguf_model import random_tensors, write_gguf
from tests.tiny_model import tiny_checkpoint, tiny_engine

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=258,
    hidden_size=64,
    intermediate_size=96,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    eos_ids=(257,),
)
ATTENTION = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]


def checkpoint(kind: Kind, folder: Path) -> Checkpoint:
    path = folder / f"{kind.name}.gguf"
    write_gguf(path, CONFIG, random_tensors(CONFIG), kind)
    return open_checkpoint(path)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_blocks_of_a_file_keep_their_values(kind: Kind, dtype: str, tmp_path: Path) -> None:
    """Rows of q and k change places on the way, as those of the floats do."""
    tensors = checkpoint(kind, tmp_path).tensors
    stored = stored_weight(tensors, ATTENTION, dtype)
    assert isinstance(stored, GroupQuantized)
    assert stored.bits == (4 if dtype == "int4" and kind != Kind.Q8_0 else 8)
    expected = torch.cat([tensors[name] for name in ATTENTION])
    assert torch.equal(stored.dequantize(), expected)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_floats_are_rounded(dtype: str, tmp_path: Path) -> None:
    tensors = checkpoint(Kind.F16, tmp_path).tensors
    stored = stored_weight(tensors, ATTENTION, dtype)
    expected = torch.cat([tensors[name] for name in ATTENTION])
    assert isinstance(stored, GroupQuantized) and stored.bits == (8 if dtype == "int8" else 4)
    error = (stored.dequantize() - expected).abs().max() / expected.abs().max()
    assert error < (0.005 if dtype == "int8" else 0.08)


def test_float_dtypes_are_cast() -> None:
    tensors = tiny_checkpoint().tensors
    for dtype in ("float32", "bfloat16", "float16"):
        stored = stored_weight(tensors, ATTENTION, dtype)
        assert isinstance(stored, torch.Tensor)
        expected = torch.cat([tensors[name] for name in ATTENTION])
        assert torch.equal(stored, expected.to(getattr(torch, dtype)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
def test_narrow_engines_stay_near_the_wide_one(backend: str, dtype: str, kv_dtype: str) -> None:
    def run(**options: str) -> tuple[torch.Tensor, int]:
        engine = tiny_engine(**options)
        [kid] = engine.fork(engine.prefill("abc 12 = 3.4: xyz - qrs"))
        assert kid.logits is not None
        return kid.logits.clone(), int(engine.cache.bytes_per_token)

    exact, wide = run()
    logits, narrow = run(backend=backend, dtype=dtype, kv_dtype=kv_dtype)
    error = (logits - exact).norm() / exact.norm()
    bounds = {"float32": 2e-3, "float16": 2e-3, "bfloat16": 0.02, "int8": 0.05, "int4": 0.4}
    assert error < bounds[dtype] + (0.03 if kv_dtype == "int8" else 0)
    assert (error > 0) == ((backend, dtype, kv_dtype) != ("cpu", "float32", "float32"))
    assert narrow <= wide


def test_an_unknown_kv_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="kv_dtype must be one of float32, float16, int8, got 'x'"):
        tiny_engine(kv_dtype="x")
