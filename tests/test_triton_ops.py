"""The Triton kernels of the op table against the reference: on a GPU where there is one, else in
Triton's interpreter, which has no bf16."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode.kernels import BLOCK_SIZE, GroupQuantized, ReferenceOps
from parallel_decode.kernels.copy_blocks import copy_blocks
from parallel_decode.kernels.kv_store import kv_store
from parallel_decode.kernels.logit_stats import logit_stats
from parallel_decode.kernels.rms_norm import add_rms_norm, rms_norm
from parallel_decode.kernels.rope import rope
from parallel_decode.kernels.sample import sample
from parallel_decode.kernels.silu_mul import silu_mul
from parallel_decode.kernels.triton_ops import TritonOps
from tests.accuracy import assert_as_accurate_as_torch

REFERENCE = ReferenceOps()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():
    DTYPES.append(torch.bfloat16)

# NumPy warns of the infinities that kernels work with, a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


# ---- rows ----


@all_dtypes
@pytest.mark.parametrize(
    ("num_rows", "columns"), [(1, 1), (1, 16), (70, 31), (5, 300), (2, 2049), (2, 16384)]
)
def test_rms_norm(num_rows, columns, dtype):
    x = randn(num_rows, columns + 5, dtype=dtype)[:, 3 : 3 + columns]
    weight = randn(columns)
    out = rms_norm(x, weight, 1e-5)
    ref = REFERENCE.rms_norm(x.double(), weight.double(), 1e-5)
    assert out.dtype == dtype and out.is_contiguous()
    assert_as_accurate_as_torch(out, ref, REFERENCE.rms_norm(x, weight, 1e-5))


@all_dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (7, 80), (3, 128), (2, 256)])
def test_rms_norm_of_heads_in_a_projection(num_tokens, head_dim, dtype):
    qkv = randn(num_tokens, 11, head_dim, dtype=dtype)
    weight = randn(head_dim)
    for heads in (qkv[:, :7], qkv[:, 7:9]):
        out = rms_norm(heads, weight, 1e-6)
        ref = REFERENCE.rms_norm(heads.double(), weight.double(), 1e-6)
        assert_as_accurate_as_torch(out, ref, REFERENCE.rms_norm(heads, weight, 1e-6))


@all_dtypes
@pytest.mark.parametrize(("num_rows", "columns"), [(1, 16), (33, 31), (5, 300), (2, 5120)])
def test_add_rms_norm(num_rows, columns, dtype):
    x = randn(num_rows, columns + 3, dtype=dtype)[:, 1 : 1 + columns]
    residual = randn(num_rows, columns + 2, dtype=dtype)[:, :columns]
    weight = randn(columns)
    expected = residual + x
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, expected)
    assert torch.equal(normed, rms_norm(expected, weight, 1e-5))


def test_rms_norm_of_zeros_and_of_large_numbers():
    x = torch.zeros(2, 64, dtype=torch.float16, device=DEVICE)
    x[1] = 60000
    out = rms_norm(x, torch.ones(64, device=DEVICE), 1e-6)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1].float().cpu(), torch.ones(64))


@all_dtypes
@pytest.mark.parametrize(("num_rows", "columns"), [(1, 1), (7, 50), (3, 1500), (2, 4096)])
def test_silu_mul(num_rows, columns, dtype):
    x = (randn(num_rows, 2 * columns + 9) * 5).to(dtype)[:, 4 : 4 + 2 * columns]
    out = silu_mul(x)
    assert out.dtype == dtype
    assert_as_accurate_as_torch(out, REFERENCE.silu_mul(x.double()), REFERENCE.silu_mul(x))


# ---- positions and the KV cache ----


@all_dtypes
@pytest.mark.parametrize("head_dim", [6, 64, 80, 96, 128, 256])
def test_rope(head_dim, dtype):
    positions = torch.tensor([0, 7, 3, 50, 7], dtype=torch.int32, device=DEVICE)
    angles = torch.arange(51)[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    cos, sin = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
    qkv = randn(5, 5 + 2 * 2, head_dim, dtype=dtype)
    before = qkv.clone()
    q, k, v = qkv.split((5, 2, 2), dim=1)
    exact = REFERENCE.rope(q.double(), k.double(), cos, sin, positions)
    same = REFERENCE.rope(q, k, cos, sin, positions)
    assert rope(q, k, cos, sin, positions) == (q, k)
    for out, ref, torch_out in zip((q, k), exact, same, strict=True):
        assert_as_accurate_as_torch(out, ref, torch_out)
    assert torch.equal(v, before[:, 7:])


def empty_caches(num_blocks: int, num_heads: int, head_dim: int, dtype: torch.dtype):
    """Every byte is 0x55."""
    shape = (num_blocks, num_heads, BLOCK_SIZE, head_dim * dtype.itemsize)
    keys, values = (
        torch.full(shape, 0x55, dtype=torch.uint8, device=DEVICE).view(dtype) for _ in range(2)
    )
    return keys.transpose(2, 3), values


SLOTS = [0, 37, -1, 5, 47, -1]


def check_stored(cache_rows: torch.Tensor, expected: torch.Tensor) -> None:
    """cache_rows: [num_slots, num_heads, head_dim]; expected: [num_tokens, num_heads, head_dim]."""
    untouched = torch.ones(len(cache_rows), dtype=torch.bool)
    for token, slot in enumerate(SLOTS):
        if slot >= 0:
            untouched[slot] = False
            got, wanted = cache_rows[slot].float(), expected[token].float()
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert (cache_rows[untouched.to(DEVICE)].contiguous().view(torch.uint8) == 0x55).all()


@pytest.mark.parametrize("fp8", [False, True], ids=["same dtype", "fp8"])
@all_dtypes
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 64), (3, 80), (2, 112), (2, 256)])
def test_kv_store(num_heads, head_dim, dtype, fp8):
    qkv = randn(len(SLOTS), 2 + 2 * num_heads, head_dim, dtype=dtype)
    _, k, v = qkv.split((2, num_heads, num_heads), dim=1)
    k[0, 0, 1], v[1, 0, 0], k[4, 0, 2], v[4, 0, 3] = torch.nan, 1e-5, 6e4, -6e4
    scales = {}
    expected = [k, v]
    cache_dtype = torch.float8_e4m3fn if fp8 else dtype
    if fp8:
        # Powers of two: their quotients are exact.
        scales["k_scale"] = torch.tensor([0.5, 2.0, 0.25][:num_heads], device=DEVICE)
        scales["v_scale"] = torch.tensor([4.0, 0.125, 1.0][:num_heads], device=DEVICE)
        expected = [
            (x.float() / scale[:, None]).clamp(-448, 448).to(cache_dtype)
            for x, scale in zip((k, v), scales.values(), strict=True)
        ]
    slots = torch.tensor(SLOTS, device=DEVICE)
    k_cache, v_cache = empty_caches(3, num_heads, head_dim, cache_dtype)
    kv_store(k, v, k_cache, v_cache, slots, **scales)
    check_stored(k_cache.permute(0, 3, 1, 2).flatten(0, 1), expected[0])
    check_stored(v_cache.transpose(1, 2).flatten(0, 1), expected[1])


def test_kv_store_takes_a_scale_of_one_where_none_is_given():
    k, v = randn(1, 2, 64), randn(1, 2, 64)
    slots = torch.tensor([3], device=DEVICE)
    k_cache, v_cache = empty_caches(1, 2, 64, torch.float8_e4m3fn)
    kv_store(k, v, k_cache, v_cache, slots, v_scale=torch.full((2,), 0.5, device=DEVICE))
    assert torch.equal(k_cache[0, :, :, 3].float(), k[0].to(torch.float8_e4m3fn).float())
    assert torch.equal(v_cache[0, :, 3].float(), (v[0] * 2).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8],
    ids=str,
)
@pytest.mark.parametrize("items", [(16,), (2, 16, 80), (40000,)], ids=str)
def test_copy_blocks(items, dtype):
    shape = (3, 2, 6, *items[:-1], items[-1] * dtype.itemsize)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)  # NaN payloads too
    expected = raw.clone()
    copies = [(0, 5), (2, 1), (0, 3)]
    REFERENCE.copy_blocks(expected, copies)
    copy_blocks(raw.view(dtype), copies)
    assert torch.equal(raw, expected)
    copy_blocks(raw.view(dtype), [])
    assert torch.equal(raw, expected)


# ---- logits ----


@pytest.fixture(params=[None, 16], ids=["one chunk", "chunks of 16"])
def chunks(request, monkeypatch):
    """Rows of the tests' sizes in one chunk of the kernels, and in many."""
    if request.param is not None:
        for name in ("sample", "logit_stats"):
            module = importlib.import_module(f"parallel_decode.kernels.{name}")
            monkeypatch.setattr(module, "MAX_BLOCK", request.param)


@all_dtypes
@pytest.mark.parametrize("vocab_size", [1, 15, 49, 1000])
def test_logit_stats(vocab_size, dtype, chunks):
    logits = (randn(4, vocab_size + 3) * 5).to(dtype)[:, :vocab_size]
    logits[1] += 50  # the largest may come first, last or in between
    logits[2] = logits[2].sort().values
    logits[3] = logits[3].sort(descending=True).values
    got = logit_stats(logits)
    exact = REFERENCE.logit_stats(logits.cpu().double())
    same = REFERENCE.logit_stats(logits.cpu().float())
    for value, ref, torch_value in zip(got, exact, same, strict=True):
        assert value.dtype == torch.float32
        ref, torch_value = torch.from_numpy(ref), torch.from_numpy(torch_value)
        assert_as_accurate_as_torch(value, ref, torch_value)


def test_logit_stats_of_banned_and_broken_logits(chunks):
    logits = randn(4, 50)
    logits[0, :40] = -torch.inf  # whole chunks without a finite value
    logits[1, 20:] = -torch.inf
    logits[2, 30] = torch.nan
    logits[3] = -torch.inf
    lse, entropy, mean = (x.cpu() for x in logit_stats(logits))
    for row, kept in ((0, logits[0, 40:]), (1, logits[1, :20])):
        stats = REFERENCE.logit_stats(kept.cpu().double()[None])
        for value, expected in zip((lse, entropy), stats, strict=False):
            np.testing.assert_allclose(value[row], expected[0], rtol=1e-5, atol=1e-5)
        assert mean[row] == -torch.inf
    assert lse[2].isnan() and lse[3] == -torch.inf


def test_logit_stats_of_a_large_vocabulary():
    logits = randn(1, 20011) * 8
    exact = REFERENCE.logit_stats(logits.cpu().double())
    for value, expected in zip(logit_stats(logits), exact, strict=True):
        np.testing.assert_allclose(value.cpu(), expected, rtol=1e-5, atol=1e-5)


def draw(ops, logits, uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Parameters are one number for all rows, or one for each."""
    columns = [
        np.broadcast_to(np.asarray(x, dtype), (len(logits),)).copy()
        for x, dtype in (
            (temperature, np.float32),
            (top_k, np.int32),
            (top_p, np.float32),
            (min_p, np.float32),
            (uniform, np.float64),
        )
    ]
    if ops is REFERENCE:
        return REFERENCE.sample(logits.cpu(), *columns)
    return sample(logits, *columns).cpu().numpy()


def assert_draws_the_reference(logits, uniform, temperature, top_k, top_p, min_p):
    got = draw(sample, logits, uniform, temperature, top_k, top_p, min_p)
    expected = draw(REFERENCE, logits, uniform, temperature, top_k, top_p, min_p)
    if np.array_equal(got, expected):
        return
    # The two may part only where the mass up to a cut or to u agrees to rounding.
    nudged = [
        draw(REFERENCE, logits, np.clip(uniform + d, 0, 1 - 1e-12), temperature, top_k, p, min_p)
        for d in (-1e-5, 0, 1e-5)
        for p in (top_p, top_p * (1 - 1e-5), np.minimum(1, top_p * (1 + 1e-5)))
    ]
    for row, token in enumerate(got):
        assert token in {tokens[row] for tokens in nudged}, (row, got, expected)


row_parameters = st.tuples(
    st.sampled_from([0.0, 0.05, 0.3, 1.0, 2.5, 50.0]),  # temperature
    st.sampled_from([0, 1, 2, 7, 40, 1000]),  # top_k
    st.sampled_from([1.0, 1 - 2**-24, 0.95, 0.5, 0.01, 0.0]),  # top_p
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),  # min_p
)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    vocab_size=st.integers(1, 200),
    kind=st.sampled_from(["ties", "normal", "wide", "half", "equal"]),
    banned=st.sampled_from([0.0, 0.3, 0.95]),
    broken=st.booleans(),
    parameters=st.lists(row_parameters, min_size=1, max_size=5),
    block=st.sampled_from([16, 8192]),
)
def test_sample_equals_the_reference(seed, vocab_size, kind, banned, broken, parameters, block):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(parameters), vocab_size)
    logits = torch.randn(shape, generator=generator) * 4
    if kind == "ties":  # few distinct values, exact in fp32 and in fp64, zeros of both signs
        logits = torch.randint(-8, 9, shape, generator=generator).float()
        logits[:, ::2] *= -1
    if kind == "wide":
        logits = logits.sign() * 10 ** (logits * 2)
    if kind == "half":
        logits = logits.half()
    if kind == "equal":
        logits[:] = logits[:, :1]
    logits[torch.rand(shape, generator=generator) < banned] = -torch.inf
    if broken:
        logits[0, vocab_size // 2] = torch.nan
    uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64).numpy()
    columns = (np.array(column, np.float64) for column in zip(*parameters, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("parallel_decode.kernels.sample")
        patch.setattr(module, "MAX_BLOCK", block)
        assert_draws_the_reference(logits.to(DEVICE), uniform, *columns)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (50, 1.0), (0, 0.9), (9000, 0.9), (12000, 0.999)]
)
def test_sample_from_a_large_vocabulary(top_k, top_p):
    logits = randn(2, 20011) * 3
    logits[1] = logits[1].bfloat16().float()  # many ties
    for uniform in (0.0, 0.37, 0.99):
        assert_draws_the_reference(logits, np.full(2, uniform), 0.8, top_k, top_p, 0.0)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "kept"),
    [
        (1, 1.0, 0.0, [1, 5]),
        (3, 1.0, 0.0, [1, 3, 5, 7]),
        (6, 1.0, 0.0, [0, 1, 2, 3, 4, 5, 7]),  # zeros of both signs tie
        (6, 1.0, 0.1, [0, 1, 3, 5, 7]),
        (0, 0.3, 0.0, [1, 5]),
        (0, 0.8, 0.0, [1, 3, 5, 7]),
        (2, 0.8, 0.0, [1, 5]),
        (0, 0.0, 0.0, [1, 5]),
        (0, 0.8, 1.0, [1, 5]),
    ],
)
def test_sample_keeps_ties_at_every_cut(top_k, top_p, min_p, kept):
    logits = torch.tensor([1.0, 3.0, -0.0, 2.0, 0.0, 3.0, -torch.inf, 2.0], device=DEVICE)
    weights = logits[kept].cpu().double().exp().numpy()
    uniform = (weights.cumsum() - weights / 2) / weights.sum()  # the middle of each one's share
    rows = logits.repeat(len(kept), 1)
    for ops in (sample, REFERENCE):
        assert draw(ops, rows, uniform, 1.0, top_k, top_p, min_p).tolist() == kept


def test_sample_is_greedy_at_temperature_zero(chunks):
    logits = randn(3, 100)
    logits[0, [70, 20, 99]] = 9.0
    logits[1] = 4.0
    logits[2, 40:] = -torch.inf
    tokens = draw(sample, logits, 0.99, 0.0, 5, 0.5, 0.1)
    assert tokens.tolist() == [20, 0, int(logits[2].argmax())]


def test_sample_at_a_temperature_next_to_zero(chunks):
    logits = torch.tensor([[0.0, 5.0, 4.0, 5.0]], device=DEVICE)
    for temperature in (1e-45, 1e-38, 1e-6):
        tokens = draw(sample, logits.repeat(2, 1), np.array([0.1, 0.9]), temperature, 0, 0.9)
        assert tokens.tolist() == [1, 3]


def test_sample_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]], device=DEVICE).repeat(200, 1)
    uniform = (np.arange(200) + 0.5) / 200
    counts = np.bincount(draw(sample, logits, uniform), minlength=5)
    p = torch.softmax(logits[0].cpu().double(), 0).numpy()
    np.testing.assert_allclose(counts, 200 * p, rtol=0, atol=1)


def test_sample_at_the_ends_of_u(chunks):
    logits = randn(1, 300)
    kept = logits[0].topk(5).indices.tolist()
    # u is below 1: 1 stands for sums of two passes that differ in their last bit.
    uniform = np.array([0.0, 1 - 2**-53, 1.0])
    tokens = draw(sample, logits.repeat(3, 1), uniform, 1.0, 5)
    assert tokens.tolist() == [min(kept), max(kept), max(kept)]


def test_sample_flags_unusable_rows(chunks):
    logits = torch.zeros(5, 20, device=DEVICE)
    logits[0, 3] = torch.nan
    logits[1] = -torch.inf
    logits[2, 5] = torch.inf
    logits[3, 19] = -torch.tensor(torch.nan)  # whose bits lie below all others
    for temperature in (0.0, 1.0):
        tokens = draw(sample, logits, 0.5, temperature, 3, 0.5)
        assert tokens[:4].tolist() == [-1, -1, -1, -1]
        assert tokens[4] == (10 if temperature else 0)


def test_sample_takes_parameters_on_the_device():
    logits = randn(3, 40)
    uniform = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    columns = [
        torch.tensor([x] * 3, dtype=dtype)
        for x, dtype in ((0.7, torch.float32), (10, torch.int32), (0.9, torch.float32))
    ]
    columns += [torch.tensor([0.05] * 3), uniform]
    got = sample(logits, *(column.to(DEVICE) for column in columns))
    assert got.dtype == torch.int64 and got.device.type == DEVICE.type
    assert got.tolist() == sample(logits, *(column.numpy() for column in columns)).tolist()


# ---- the table ----


@all_dtypes
def test_the_table_has_the_products_of_torch(dtype):
    ops = TritonOps(DEVICE)
    weight, bias = torch.randn(20, 33), torch.randn(20)
    layer = ops.pack_linear(weight.to(dtype), bias)
    assert (layer.in_features, layer.out_features) == (33, 20)
    assert layer.num_bytes == 20 * 33 * dtype.itemsize
    x = randn(3, 33, dtype=dtype)
    stored = weight.to(dtype)
    ref = x.cpu().double() @ stored.double().T + bias.to(dtype).double()
    same = x.cpu() @ stored.T + bias.to(dtype)
    assert_as_accurate_as_torch(ops.linear(x, layer).cpu(), ref, same)
    ids = torch.tensor([19, 0, 7], device=DEVICE)
    assert torch.equal(ops.embedding(layer, ids).cpu(), stored[ids.cpu()])
    assert ops.fuse(object()) is None


def test_the_table_calls_the_kernels():
    ops = TritonOps(DEVICE)
    x, residual, weight = randn(3, 32), randn(3, 32), randn(32)
    normed = REFERENCE.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), normed)
    expected = REFERENCE.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(ops.add_rms_norm(x, residual.clone(), weight, 1e-5), expected)
    torch.testing.assert_close(ops.silu_mul(x), REFERENCE.silu_mul(x))

    k, v = randn(2, 1, 64), randn(2, 1, 64)
    cos, sin = randn(9, 32), randn(9, 32)
    positions = torch.tensor([8, 2], dtype=torch.int32, device=DEVICE)
    expected = REFERENCE.rope(k, v, cos, sin, positions)
    torch.testing.assert_close(ops.rope(k.clone(), v.clone(), cos, sin, positions), expected)
    storage = torch.zeros(2, 2, 3, BLOCK_SIZE * 64, device=DEVICE)
    keys, values = storage[0].view(2, 3, 1, BLOCK_SIZE, 64)
    slots = torch.tensor([17, 4], device=DEVICE)
    ops.kv_store(k, v, keys.transpose(2, 3), values, slots)
    assert torch.equal(keys[1, :, 1], k[0]) and torch.equal(values[0, :, 4], v[1])
    ops.copy_blocks(storage, [(1, 2)])
    assert torch.equal(keys[2], keys[1])

    logits = randn(2, 50)
    for value, expected in zip(
        ops.logit_stats(logits), REFERENCE.logit_stats(logits.cpu()), strict=True
    ):
        assert isinstance(value, np.ndarray)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    values, tokens = ops.top_logits(logits, 3)
    assert np.array_equal(values, np.take_along_axis(logits.cpu().numpy(), tokens, 1))
    assert np.array_equal(values, REFERENCE.top_logits(logits.cpu(), 3)[0])
    words = np.array([[-1, 0], [0x5555, -1]], np.int32)
    torch.testing.assert_close(
        ops.mask_logits(logits, words).cpu(), REFERENCE.mask_logits(logits.cpu(), words)
    )
    columns = [np.array([x, x]) for x in (1.0, 5, 0.9, 0.0, 0.3)]
    tokens = ops.sample(logits, *columns)
    assert tokens.dtype == np.int64
    assert np.array_equal(tokens, REFERENCE.sample(logits.cpu(), *columns))


def test_the_table_refuses_what_it_cannot_store():
    ops = TritonOps(DEVICE)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        ops.pack_linear(torch.zeros(4, 4).double(), None)
    quantized = GroupQuantized.from_float(torch.randn(4, 32), 4)
    with pytest.raises(
        ValueError, match=r"takes weights of float32, float16 and bfloat16, not quantised.* 4 bits"
    ):
        ops.pack_linear(quantized, None)
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        ops.pack_linear(torch.zeros(4, 32, dtype=torch.int8), None)
    with pytest.raises(ValueError, match=r"two dimensions, got \(4,\)"):
        ops.pack_linear(torch.zeros(4), None)
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(5,\)"):
        ops.pack_linear(torch.zeros(4, 32), torch.zeros(5))


# ---- bad arguments ----


def test_rows_name_the_offender():
    x, weight = randn(2, 32), randn(32)
    with pytest.raises(ValueError, match=r"x must be float32.* not torch\.float64"):
        rms_norm(x.double(), weight, 1e-5)
    with pytest.raises(ValueError, match=r"x must be \[num_rows, 32\].* \(2, 31\)"):
        rms_norm(x[:, 1:], weight, 1e-5)
    with pytest.raises(ValueError, match=r"strides \(1, 32\)"):
        rms_norm(randn(32, 32).T, weight, 1e-5)
    with pytest.raises(ValueError, match=r"two or three dimensions, got \(2, 1, 1, 32\)"):
        rms_norm(x[:, None, None], weight, 1e-5)
    with pytest.raises(ValueError, match=r"weight must be fp32 .*float16"):
        rms_norm(x, weight.half(), 1e-5)
    with pytest.raises(ValueError, match=r"at most 16384 numbers, got 16385"):
        rms_norm(randn(1, 16385), randn(16385), 1e-5)
    with pytest.raises(ValueError, match=r"weight is on meta"):
        rms_norm(x, weight.to("meta"), 1e-5)
    with pytest.raises(ValueError, match=r"residual must be .*\(2, 32\) as x.* \(1, 32\)"):
        add_rms_norm(x, x[:1], weight, 1e-5)
    with pytest.raises(ValueError, match=r"residual must be torch\.float32.* torch\.float16"):
        add_rms_norm(x, x.half(), weight, 1e-5)
    with pytest.raises(ValueError, match=r"even number of columns, got 31"):
        silu_mul(x[:, 1:])
    with pytest.raises(ValueError, match=r"gate_up must be .*int32"):
        silu_mul(x.int())


def test_rope_names_the_offender():
    q, k, table = randn(3, 4, 64), randn(3, 2, 64), randn(10, 32)
    positions = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    for change, message in (
        ({"k": k[:2]}, r"q is torch\.float32 of 3 tokens, k is torch\.float32 of 2"),
        ({"k": k.half()}, r"k is torch\.float16 of 3"),
        ({"q": q[..., ::2]}, r"strides \(256, 64, 2\)"),
        ({"cos": table[:, 1:]}, r"cos must be fp32 \[10, 32\].*\(10, 31\)"),
        ({"sin": table[1:]}, r"sin must be fp32 \[10, 32\].*\(9, 32\)"),
        ({"positions": positions.long()}, r"3 int32, got torch\.int64"),
        ({"positions": positions[1:]}, r"3 int32, got .* \(2,\)"),
        ({"q": q[..., :63], "k": k[..., :63]}, r"head_dim must be even, got 63"),
    ):
        arguments = {"q": q, "k": k, "cos": table, "sin": table, "positions": positions}
        with pytest.raises(ValueError, match=message):
            rope(**{**arguments, **change})


def test_kv_store_names_the_offender():
    k_cache, v_cache = empty_caches(2, 2, 64, torch.float32)
    k_fp8, v_fp8 = empty_caches(2, 2, 64, torch.float8_e4m3fn)
    x = randn(3, 2, 64)
    good = {
        "k": x,
        "v": x,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "slot_mapping": torch.zeros(3, dtype=torch.int64, device=DEVICE),
    }
    for change, message in (
        ({"v": x[:2]}, r"k is torch\.float32 of 3 tokens, v is torch\.float32 of 2"),
        ({"v": x[:, :1]}, r"v must be \[num_rows, 2, 64\].*\(3, 1, 64\)"),
        (
            {"k_cache": k_cache.contiguous()},
            r"k_cache must be .*, got \(2, 2, 64, 16\) with strides \(2048, 1024, 16, 1\)",
        ),
        ({"v_cache": v_cache[..., 1:]}, r"v_cache must be .* 64\].*\(2, 2, 16, 63\)"),
        ({"k_cache": k_cache.half()}, r"k_cache is torch\.float16, k is torch\.float32"),
        ({"v_cache": v_fp8}, r"v_cache is torch\.float8_e4m3fn.* k_cache torch\.float32"),
        ({"slot_mapping": good["slot_mapping"].int()}, r"3 int64, got torch\.int32"),
        ({"k_scale": torch.ones(2)}, r"scales belong to fp8 caches, these are torch\.float32"),
        (
            {"k_cache": k_fp8, "v_cache": v_fp8, "v_scale": torch.ones(3)},
            r"v_scale must hold 2 fp32, got torch\.float32 \(3,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            kv_store(**{**good, **change})


def test_blocks_and_logits_name_the_offender():
    storage = torch.zeros(2, 2, 4, 32, device=DEVICE)
    with pytest.raises(ValueError, match=r"there are 4 blocks, a copy is \(0, 4\)"):
        copy_blocks(storage, [(1, 2), (0, 4)])
    with pytest.raises(ValueError, match=r"there are 4 blocks, a copy is \(-1, 0\)"):
        copy_blocks(storage, [(-1, 0)])
    with pytest.raises(ValueError, match=r"multiple of 16 bytes, got 120"):
        copy_blocks(storage[..., :30].contiguous(), [(0, 1)])
    with pytest.raises(ValueError, match=r"its strides are"):
        copy_blocks(storage[..., :16], [(0, 1)])
    with pytest.raises(ValueError, match=r"logits must be .* torch\.float64"):
        logit_stats(storage[0, 0].double())
    with pytest.raises(ValueError, match=r"logits must be \[num_rows, 4\]"):
        logit_stats(storage[0, 0].T)
    with pytest.raises(ValueError, match=r"4 rows of logits, top_k has shape \(3,\)"):
        sample(storage[0, 0], *(np.ones(n) for n in (4, 3, 4, 4, 4)))
