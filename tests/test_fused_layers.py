"""All layers in one native call give the bits of the operations one by one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.parity import TINY_MODELS, TinyModel
from parallel_decode import _C
from parallel_decode.engine import Engine, SamplingParams
from parallel_decode.kernels import BranchPlan
from parallel_decode.model import open_checkpoint
from tests.tiny_model import tiny_checkpoint, tiny_engine


def hidden_states(engine: Engine, forward: Callable[..., Tensor]) -> list[Tensor]:
    """Of a prompt and of two branches behind it, through `forward`."""
    frequencies = engine.model.inverse_frequencies.numpy().astype(np.float32)
    root = _C.BlockTable(engine.cache.pool)
    tables, states = [root], []
    rng = np.random.default_rng(0)
    for counts in ([37], [3, 1], [1, 1]):
        if len(counts) > len(tables):
            tables = [root.fork(), root.fork()]
        starts = np.array([table.num_tokens for table in tables], np.int32)
        slots, copies = _C.append_tokens(tables, np.array(counts, np.int32), starts)
        engine.cache.copy_blocks(copies)
        positions = np.concatenate(
            [np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]
        ).astype(np.int32)
        plan = BranchPlan(tables, np.array(counts, np.int32), positions, frequencies)
        ids = torch.from_numpy(rng.integers(0, engine.config.vocab_size, sum(counts)))
        arrays = (torch.from_numpy(positions), torch.from_numpy(slots))
        states.append(forward(ids, *arrays, plan, engine.cache))
    return states


def assert_same(engine: Engine) -> None:
    fused = hidden_states(engine, engine.model.forward)
    composed = hidden_states(engine, engine.model.compose)
    for a, b in zip(fused, composed, strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_every_architecture(tiny: TinyModel, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    for threads in (1, 2):
        assert_same(
            Engine(open_checkpoint(tmp_path), kv_tokens=512, threads=threads, max_seq_len=64)
        )


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("bfloat16", "float16"), ("int8", "int8"), ("int4", "float32")]
)
def test_every_format(isa: str, dtype: str, kv_dtype: str) -> None:
    assert_same(tiny_engine(isa=isa, dtype=dtype, kv_dtype=kv_dtype))


def test_bad_tokens_and_positions_are_named() -> None:
    engine = tiny_engine()
    size = engine.config.vocab_size
    table = _C.BlockTable(engine.cache.pool)
    slots, _ = _C.append_tokens([table], np.array([1], np.int32), np.array([0], np.int32))
    zero = np.zeros(1, np.int32)
    plan = BranchPlan([table], np.ones(1, np.int32), zero, np.ones(8, np.float32))
    rest = (torch.from_numpy(zero), torch.from_numpy(slots), plan, engine.cache)
    for token in (-1, size):
        with pytest.raises(ValueError, match=rf"\[0, {size}\), got {token}"):
            engine.model.forward(torch.tensor([token]), *rest)
    late = (torch.tensor([512], dtype=torch.int32), *rest[1:])
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 512\), got 512"):
        engine.model.forward(torch.tensor([0]), *late)
    with pytest.raises(ValueError, match=r"input_ids must hold 1 torch\.int64, got .*int32"):
        engine.model.forward(torch.zeros(1, dtype=torch.int32), *rest)


def test_a_head_that_the_kernels_cannot_take_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="head_dim 8: heads must divide evenly"):
        tiny_engine(tiny_checkpoint(head_dim=8))


def test_the_model_outlives_what_the_native_side_points_to() -> None:
    def branch_text() -> str:
        engine = tiny_engine(dtype="int8")
        [kid] = engine.fork(engine.prefill("abc"))
        engine.extend(kid, SamplingParams(temperature=0, max_tokens=8))
        return kid.text

    texts = {branch_text() for _ in range(5)}
    assert len(texts) == 1
