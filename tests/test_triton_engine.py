"""The engine on the Triton backend: in the interpreter on a CPU, compiled where there is a card."""

import numpy as np
import pytest
import torch

from benchmarks.gpu_decode import DRY, Steps, capture_again, check
from benchmarks.random_model import TINY
from parallel_decode.engine import SamplingParams
from parallel_decode.engine.step_graphs import CudaCapture
from tests.tiny_model import tiny_checkpoint, tiny_engine

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPT = "abc def 0123456789 the end.\n"


def triton_engine(**options):
    return tiny_engine(backend="triton", device=DEVICE, kv_tokens=2048, **options)


def branches_of(engine) -> list[list[int]]:
    """A prompt, three children, one of them forked again in mid-stream, one rolled back."""
    root = engine.prefill(PROMPT)
    kids = engine.fork(root, 3)
    engine.extend(kids, GREEDY)
    grandkids = engine.fork(kids[1], 2)
    engine.extend(grandkids[0], tokens="xy")
    engine.rollback(kids[2], kids[2].num_tokens - 3)
    engine.prune(kids[0])
    engine.extend([*grandkids, kids[2]], GREEDY)
    return [branch.output_tokens for branch in (*grandkids, kids[2])]


def test_greedy_tokens_are_those_of_the_reference():
    checkpoint = tiny_checkpoint()
    expected = branches_of(tiny_engine(checkpoint, backend="reference", kv_tokens=2048))
    assert branches_of(triton_engine(checkpoint=checkpoint, dtype="float32")) == expected


def test_sampled_tokens_are_those_of_the_cpu():
    params = SamplingParams(
        temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, max_tokens=5, ignore_eos=True
    )
    checkpoint = tiny_checkpoint()
    tokens = []
    for engine in (
        tiny_engine(checkpoint, kv_tokens=2048),
        triton_engine(checkpoint=checkpoint, dtype="float32"),
    ):
        kids = engine.fork(engine.prefill(PROMPT), 4)
        engine.extend(kids, params)
        tokens.append([kid.output_tokens for kid in kids])
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("kv_dtype", ["float16", "float8_e4m3fn"])
def test_half_precision_stays_near(kv_dtype):
    checkpoint = tiny_checkpoint()
    expected = tiny_engine(checkpoint, kv_tokens=2048).prefill(PROMPT)
    engine = triton_engine(checkpoint=checkpoint, dtype="float16", kv_dtype=kv_dtype)
    branch = engine.prefill(PROMPT)
    assert branch.logits.dtype == torch.float16
    error = (branch.logits.cpu().float() - expected.logits).abs().max()
    assert error < (0.5 if kv_dtype == "float8_e4m3fn" else 0.05) * expected.logits.std()


def test_the_log_says_what_attention_read():
    engine = triton_engine(dtype="float32")
    seen = []
    engine.observe(seen.append)
    kids = engine.fork(engine.prefill(PROMPT * 3), 4)
    engine.extend(kids, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    assert seen[-1].kv_tokens_stored <= seen[-1].kv_tokens_read <= seen[-1].kv_tokens_logical * 1.5
    assert 0 < seen[-1].kv_bytes_floor <= seen[-1].kv_bytes_read
    assert seen[-1].attention_launches in (1, 2) and seen[-1].path in ("shared", "alone")


@pytest.mark.parametrize("tree", DRY, ids=lambda tree: tree.name)
def test_filled_up_steps_give_the_tokens_of_plain_ones(tree):
    """As a graph they would run: at fixed addresses, with rows that belong to nobody."""
    capture = CudaCapture() if ON_GPU else capture_again
    steps = Steps(TINY, torch.device(DEVICE), torch.float32, 2048, capture)
    check(steps, tree, exact=True)
    before = steps.cache.storage.clone()
    tokens, _ = steps.decode(tree, 2)
    touched = (steps.cache.storage != before).flatten(3).any(-1).any(0).any(0)
    # A row that belongs to nobody would write to slot -1 or 0.
    assert not touched[-1] and np.isfinite(tokens).all()


def test_a_step_with_joined_keys_runs_without_a_graph():
    engine = triton_engine(dtype="float32")
    root = engine.prefill(PROMPT)
    kids = engine.fork(root, 2)
    engine.extend(kids, GREEDY)
    joined = engine.join(root, kids, "kv_concat")
    engine.extend(joined, GREEDY, tokens="so ")
    checkpoint = tiny_checkpoint()
    plain = tiny_engine(checkpoint, backend="reference", kv_tokens=2048)
    other_root = plain.prefill(PROMPT)
    other_kids = plain.fork(other_root, 2)
    plain.extend(other_kids, GREEDY)
    other = plain.join(other_root, other_kids, "kv_concat")
    plain.extend(other, GREEDY, tokens="so ")
    assert joined.output_tokens == other.output_tokens


@pytest.mark.skipif(ON_GPU, reason="there is a card")
def test_a_missing_card_is_said_clearly():
    with pytest.raises(ValueError, match=r"'cuda': this torch .* Use device='cpu'"):
        tiny_engine(device="cuda")
    with pytest.raises(ValueError, match="must be 'cpu' or 'cuda', got 'tpu'"):
        tiny_engine(device="tpu")
    with pytest.raises(ValueError, match="not 'int8'"):
        tiny_engine(backend="triton", dtype="int8")
    with pytest.raises(ValueError, match="float32, float8_e4m3fn, got 'int8'"):
        tiny_engine(backend="triton", dtype="float32", kv_dtype="int8")
