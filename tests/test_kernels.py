"""Every CPU kernel: as accurate as PyTorch, and the same bits in every ISA and batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.kernels import (
    KV_DTYPES,
    BranchPlan,
    CpuOps,
    GroupQuantized,
    ReferenceOps,
)
from parallel_decode.kernels.group_quantized import GGML_BLOCKS, GROUP_SIZE, quantize_rows
from parallel_decode.kernels.kv_format import cache_shapes, read_keys, read_values
from tests.accuracy import assert_as_accurate_as_torch
from tests.forest import Forest, tree_masks

ISAS = _C.available_isas()
REFERENCE = ReferenceOps()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=ISAS)
def ops(request) -> CpuOps:
    return CpuOps(request.param)


@pytest.fixture
def threads():
    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [(1, 16, 16), (3, 300, 50), (17, 128, 15), (97, 129, 100), (13, 576, 33)],
    ids=lambda v: str(v),
)
def test_linear(ops, rows, k, n, dtype):
    x, weight, bias = torch.randn(rows, k), torch.randn(n, k), torch.randn(n)
    stored = weight.to(dtype)
    out = ops.linear(x, ops.pack_linear(stored, bias))
    ref = x.double() @ stored.double().T + bias.double()
    assert_as_accurate_as_torch(out, ref, x @ stored.float().T + bias)
    scalar = CpuOps("scalar")
    assert torch.equal(out, scalar.linear(x, scalar.pack_linear(stored, bias)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_row_is_the_same_alone_and_in_any_batch(ops, dtype, threads):
    layer = ops.pack_linear(torch.randn(130, 300).to(dtype), None)
    x = torch.randn(200, 300)
    threads(2)
    together = ops.linear(x, layer)
    threads(1)
    assert torch.equal(together, ops.linear(x, layer))
    for rows in (slice(0, 1), slice(5, 18), slice(90, 103), slice(7, 200)):
        assert torch.equal(together[rows], ops.linear(x[rows], layer))


def quantized(n: int, k: int, kind: str) -> GroupQuantized:
    """Values that use the whole range, so that an instruction that saturates shows."""
    groups = -(-k // GROUP_SIZE)
    lowest, highest = (-127, 127) if kind == "int8" else (0, 15)
    values = torch.randint(lowest, highest + 1, (n, groups * GROUP_SIZE), dtype=torch.int8)
    values[::3] = highest
    values[1::3, ::2] = lowest
    values[:, k:] = 0
    scale = torch.rand(n, groups).half() / highest
    minimum = None if kind == "int8" else torch.randn(n, groups).half()
    return GroupQuantized(values, scale, minimum, k, 4 if kind == "int4" else 8)


@pytest.mark.parametrize("kind", ["int8", "int4_bytes", "int4"])
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(1, 32, 16), (3, 300, 50), (17, 128, 15), (97, 129, 100), (32, 576, 64)]
)
def test_quantized_linear(ops, rows, k, n, kind):
    weight, bias = quantized(n, k, kind), torch.randn(n)
    x = torch.randn(rows, k) * torch.rand(rows, 1) * 10
    x[0] = x[0].abs().amax()  # all at 127
    out = ops.linear(x, ops.pack_linear(weight, bias))
    values, scale = quantize_rows(x)
    rounded = (values * scale.unsqueeze(-1)).flatten(1)[:, :k]
    # What is left is fp32 rounding of the sums over groups.
    ref = rounded.double() @ weight.dequantize().double().T + bias.double()
    assert_as_accurate_as_torch(out, ref, rounded @ weight.dequantize().T + bias)
    torch.testing.assert_close(
        REFERENCE.linear(x.double(), REFERENCE.pack_linear(weight, bias)),
        ref,
        rtol=0,
        atol=1e-6 * float(ref.abs().max()),
    )
    scalar = CpuOps("scalar")
    assert torch.equal(out, scalar.linear(x, scalar.pack_linear(weight, bias)))
    assert torch.equal(
        ops.embedding(ops.pack_linear(weight, None), torch.arange(n)), weight.dequantize()
    )


@pytest.mark.parametrize("kind", ["int8", "int4_bytes", "int4"])
def test_quantized_row_is_the_same_alone_and_in_any_batch(ops, kind, threads):
    layer = ops.pack_linear(quantized(130, 300, kind), None)
    x = torch.randn(200, 300)
    x[3] = torch.nan
    x[4, 7] = torch.inf
    x[5] = 0
    x[6] = 1e-42
    threads(2)
    together = ops.linear(x, layer)
    threads(1)
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(together, ops.linear(x, layer), **same)
    for rows in (slice(0, 1), slice(5, 18), slice(90, 103), slice(7, 200)):
        torch.testing.assert_close(together[rows], ops.linear(x[rows], layer), **same)
    assert together[3:5].isnan().all() and together[5:].isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_are_the_nearest_there_are(bits):
    weight = torch.randn(40, 100)
    weight[7] = 0
    stored = GroupQuantized.from_float(weight, bits)
    step = stored.scale.float().repeat_interleave(GROUP_SIZE, 1)[:, :100]
    error = (stored.dequantize() - weight).abs()
    # Half a step, and the rounding of the scale and the minimum to fp16.
    assert (error <= step * 0.5 + weight.abs().max() * 2e-3).all()
    both = GroupQuantized.cat([stored, stored], bits)
    assert both.bits == bits and torch.equal(both.dequantize(), stored.dequantize().repeat(2, 1))
    with pytest.raises(ValueError, match="not finite"):
        GroupQuantized.from_float(torch.full((1, 32), torch.inf), bits)


@pytest.mark.parametrize("kind", GGML_BLOCKS)
def test_ggml_blocks_keep_their_values(kind):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (6, 3, GGML_BLOCKS[kind][0]), dtype=np.uint8)
    raw[..., :2] = np.array([0.03], np.float16).view(np.uint8)  # a scale is no NaN
    if kind in ("Q4_1", "Q4_K"):
        raw[..., 2:4] = np.array([-0.2], np.float16).view(np.uint8)
    expected = dequantize(raw.reshape(6, -1), GGMLQuantizationType[kind])
    got = GroupQuantized.from_ggml(kind, raw.reshape(6, -1)).dequantize().numpy()
    if kind == "Q4_K":  # products of scales are rounded to fp16
        np.testing.assert_allclose(got, expected, rtol=0, atol=np.abs(expected).max() * 2e-3)
    else:
        assert np.array_equal(got, expected)


def test_parts_of_8_and_4_bits_make_8_for_both():
    parts = [GroupQuantized.from_float(torch.randn(16, 64), bits) for bits in (8, 4)]
    both = GroupQuantized.cat(parts, 4)
    assert both.bits == 8 and both.minimum is None
    assert torch.equal(both.dequantize()[:16], parts[0].dequantize())
    torch.testing.assert_close(both.dequantize()[16:], parts[1].dequantize(), rtol=0, atol=0.02)


def test_embedding_returns_the_stored_rows(ops):
    for dtype in DTYPES:
        weight = torch.randn(37, 48)
        ids = torch.tensor([0, 36, 15, 16, 36])
        out = ops.embedding(ops.pack_linear(weight.to(dtype), None), ids)
        assert torch.equal(out, weight.to(dtype).float()[ids])


def test_float16_special_values_survive_packing(ops):
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    weight = bits.view(torch.float16).float().nan_to_num(0.0, 0.0, 0.0).view(64, 1024)
    table = ops.pack_linear(weight.half(), None)
    assert torch.equal(ops.embedding(table, torch.arange(64)), weight)
    one_hot = torch.zeros(1, 1024)
    one_hot[0, 5] = 1.0
    assert torch.equal(ops.linear(one_hot, table)[0], weight[:, 5])


@pytest.mark.parametrize("columns", [16, 31, 576])
def test_rms_norm(ops, columns):
    x, residual, weight = (torch.randn(5, columns) for _ in range(3))
    weight = weight[0].contiguous()
    ref = REFERENCE.rms_norm(x.double(), weight.double(), 1e-5)
    out = ops.rms_norm(x, weight, 1e-5)
    assert_as_accurate_as_torch(out, ref, REFERENCE.rms_norm(x, weight, 1e-5))
    assert torch.equal(out, CpuOps("scalar").rms_norm(x, weight, 1e-5))
    normed, total = ops.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, ops.rms_norm(residual + x, weight, 1e-5))


def test_silu_mul(ops):
    x = torch.randn(7, 2 * 50) * 20
    ref = REFERENCE.silu_mul(x.double())
    out = ops.silu_mul(x)
    assert_as_accurate_as_torch(out, ref, REFERENCE.silu_mul(x))
    assert torch.equal(out, CpuOps("scalar").silu_mul(x))


def test_rope_and_kv_store(ops):
    positions = torch.tensor([0, 7, 3, 50], dtype=torch.int32)
    angles = torch.arange(64)[:, None] * 10000.0 ** (-torch.arange(0, 32, 2) / 32)
    fused = torch.randn(4, 6 * 32)
    q, k = fused[:, :128].view(4, 4, 32), fused[:, 128:].view(4, 2, 32)
    expected = REFERENCE.rope(q, k, angles.cos(), angles.sin(), positions)
    got = ops.rope(q.clone(), k.clone(), angles.cos(), angles.sin(), positions)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 112])
def test_kv_store(ops, dtype, head_dim):
    k, v = torch.randn(4, 2, head_dim) * 3, torch.randn(4, 2, head_dim)
    k[1], v[2], k[3, 1, 5] = 0, 1e-7, torch.nan
    shapes = cache_shapes(dtype, 3, 2, head_dim)
    caches = [tuple(torch.zeros(shape, dtype=dtype) for shape in shapes) for _ in range(2)]
    slots = torch.tensor([0, 17, 5, 47])
    for backend, (k_cache, v_cache) in zip((ops, REFERENCE), caches, strict=True):
        backend.kv_store(k, v, k_cache, v_cache, slots)
    for block in range(3):
        for read, ours, theirs in zip((read_keys, read_values), *caches, strict=True):
            got, expected = read(ours, block, head_dim), read(theirs, block, head_dim)
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    stored = read_keys(caches[0][0], 1, head_dim)[:, :, 1].float()  # slot 17
    assert torch.equal(stored, torch.zeros_like(stored))
    error = (read_values(caches[0][1], 0, head_dim)[:, 0].float() - v[0]).abs().max()
    assert error <= {torch.float32: 0, torch.float16: 2e-3, torch.int8: 0.02}[dtype]


# ---- branch attention ----


class CheckedForest(Forest):
    """Attention over it is checked against the reference, and the bits against the scalar body."""

    def check(self, ops, tables, rows, num_heads: int, window: int | None = None) -> torch.Tensor:
        plan = self.plan(tables, rows)
        return self.check_plan(ops, plan, num_heads, window)

    def check_plan(self, ops, plan, num_heads: int, window: int | None = None) -> torch.Tensor:
        q = torch.randn(plan.num_rows, num_heads, self.head_dim)
        args = (plan, self.head_dim**-0.5, window)
        out = ops.branch_attention(q, self.k, self.v, *args)
        ref = REFERENCE.branch_attention(q.double(), self.k, self.v, *args)
        same = REFERENCE.branch_attention(q, self.k, self.v, *args)
        assert_as_accurate_as_torch(out, ref, same)
        assert torch.equal(out, CpuOps("scalar").branch_attention(q, self.k, self.v, *args))
        return out


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(4, 4, 32), (8, 2, 64), (7, 1, 16), (9, 3, 64), (2, 2, 256), (6, 3, 112)],
)
@pytest.mark.parametrize("window", [None, 1, 13, 100])
def test_branch_attention(ops, num_heads, num_kv_heads, head_dim, window):
    forest = CheckedForest(num_kv_heads, head_dim)
    root = forest.root(37)
    kids = [forest.grow(root.fork(), n) for n in (1, 11, 12, 1)]
    grandkids = [forest.grow(kids[1].fork(), n) for n in (1, 40, 3)]
    lone = forest.root(1)
    long = forest.root(80)
    tables = [kids[0], *grandkids, kids[2], kids[3], lone, long]
    forest.check(ops, tables, [1, 1, 40, 2, 5, 1, 1, 80], num_heads, window)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 112])
def test_branch_attention_over_narrow_keys(ops, dtype, head_dim):
    forest = CheckedForest(2, head_dim, dtype=dtype)
    root = forest.root(37)
    kids = [forest.grow(root.fork(), n) for n in (1, 11, 12, 1)]
    lone = forest.root(70)
    forest.check(ops, [*kids, lone], [1, 5, 1, 1, 70], 6)
    forest.check(ops, [*kids, lone], [1, 5, 1, 1, 70], 6, 20)


@given(
    parents=st.integers(1, 64).flatmap(
        lambda n: st.tuples(*(st.integers(-1, i - 1) for i in range(n)))
    ),
    prefix=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_draft_trees_see_their_own_path(parents, prefix, seed):
    torch.manual_seed(seed)
    forest = CheckedForest(2, 32, 40)
    root = forest.root(prefix)
    drafted = forest.grow(root.fork(), len(parents))
    plain = forest.grow(root.fork(), 3)
    masks = np.array([*tree_masks(parents), 0, 0], np.uint64)
    rows = np.array([len(parents), 2], np.int32)
    positions = np.zeros(rows.sum(), np.int32)
    plan = BranchPlan([drafted, plain], rows, positions, forest.frequencies, masks)
    for isa in ISAS:
        forest.check_plan(CpuOps(isa), plan, 4)


def test_a_chain_as_a_draft_has_the_bits_of_plain_rows(ops):
    forest = CheckedForest(2, 32)
    table = forest.root(75)
    q = torch.randn(30, 4, 32)
    plain = ops.branch_attention(q, forest.k, forest.v, forest.plan([table], [30]), 0.2)
    masks = np.array(tree_masks(list(range(-1, 29))), np.uint64)
    as_plain = forest.plan([table], [30])
    plan = BranchPlan([table], as_plain.rows, as_plain.positions, forest.frequencies, masks)
    assert torch.equal(plain, ops.branch_attention(q, forest.k, forest.v, plan, 0.2))


@pytest.mark.parametrize("prefix", [1, 15, 16, 17, 63, 1000])
def test_prefix_lengths_around_a_block(ops, prefix):
    forest = CheckedForest(2, 32)
    root = forest.root(prefix)
    kids = [forest.grow(root.fork(), 1) for _ in range(17)]
    forest.check(ops, kids, [1] * 17, 4)


def test_shared_and_copied_prefixes_give_the_same_bits(ops, threads):
    forest = CheckedForest(3, 64)
    root = forest.root(70)
    shared = [forest.grow(root.fork(), n) for n in (1, 5, 30, 9)]
    copies = []
    for table in shared:
        copy = forest.root(table.num_tokens)
        pairs = zip(table.entries()[:, 0], copy.entries()[:, 0], strict=True)
        for source, target in pairs:
            forest.k[target], forest.v[target] = forest.k[source], forest.v[source]
        copies.append(copy)
    rows = [1, 2, 30, 1]
    q = torch.randn(34, 9, 64)
    assert forest.plan(shared, rows).tokens_stored < forest.plan(copies, rows).tokens_stored
    outs = []
    for tables in (shared, copies):
        for count in (1, 2, 3):
            threads(count)
            plan = forest.plan(tables, rows)
            outs.append(ops.branch_attention(q, forest.k, forest.v, plan, 0.125))
    alone = [
        ops.branch_attention(q[i : i + 1], forest.k, forest.v, forest.plan([t], [1]), 0.125)
        for i, t in [(0, shared[0]), (33, shared[3])]
    ]
    for out in outs[1:]:
        assert torch.equal(outs[0], out)
    assert torch.equal(outs[0][:1], alone[0]) and torch.equal(outs[0][33:], alone[1])


def test_chunked_queries_give_the_same_bits_as_all_at_once(ops):
    forest = CheckedForest(2, 32)
    table = forest.root(50)
    q = torch.randn(50, 4, 32)
    whole = ops.branch_attention(q, forest.k, forest.v, forest.plan([table], [50]), 0.2)
    for row in (0, 15, 16, 33, 49):
        prefix = table.fork()
        prefix.truncate(row + 1)
        one = forest.plan([prefix], [1])
        out = ops.branch_attention(q[row : row + 1], forest.k, forest.v, one, 0.2)
        assert torch.equal(whole[row], out[0])


def test_moved_views_equal_keys_stored_at_the_new_position(ops):
    forest = CheckedForest(2, 32)
    angles = torch.arange(200)[:, None] * torch.from_numpy(forest.frequencies)
    keys, values = torch.randn(20, 2, 32), torch.randn(20, 2, 32)

    def stored_at(start: int):
        table = _C.BlockTable(forest.pool)
        slots, _ = _C.append_tokens([table], [20], [start])
        positions = torch.arange(start, start + 20, dtype=torch.int32)
        _, turned = REFERENCE.rope(keys, keys, angles.cos(), angles.sin(), positions)
        REFERENCE.kv_store(turned, values, forest.k, forest.v, torch.from_numpy(slots))
        return table

    root = forest.root(10)
    q = torch.randn(1, 4, 32)
    outs = []
    for start, offset in ((10, 33), (43, 0)):
        table = root.fork()
        table.append_view(stored_at(start), 3, 20, offset)
        plan = BranchPlan(
            [forest.grow(table, 1, 63)],
            np.array([1], np.int32),
            np.array([63], np.int32),
            forest.frequencies,
        )
        last = table.entries()[-1]
        newest = last[2] - 1
        forest.k[last[0], :, :, newest], forest.v[last[0], :, newest] = 0.0, 0.0
        outs.append(ops.branch_attention(q, forest.k, forest.v, plan, 0.2))
        ref = REFERENCE.branch_attention(q, forest.k, forest.v, plan, 0.2)
        torch.testing.assert_close(outs[-1], ref, rtol=0, atol=1e-5)
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-5)


def test_nan_in_one_row_stays_there(ops):
    forest = CheckedForest(2, 32)
    root = forest.root(20)
    kids = [forest.grow(root.fork(), 1) for _ in range(3)]
    q = torch.randn(3, 4, 32)
    clean = ops.branch_attention(q, forest.k, forest.v, forest.plan(kids, [1] * 3), 0.2)
    q[1] = torch.nan
    dirty = ops.branch_attention(q, forest.k, forest.v, forest.plan(kids, [1] * 3), 0.2)
    assert dirty[1].isnan().all()
    assert torch.equal(clean[[0, 2]], dirty[[0, 2]])


def test_garbage_beyond_the_last_token_is_not_read(ops):
    forest = CheckedForest(2, 32)
    table = forest.root(19)
    last = table.entries()[-1]
    forest.k[last[0], :, :, last[2] :] = torch.nan
    forest.v[last[0], :, last[2] :] = torch.nan
    forest.check(ops, [table], [2], 4)


def test_plan_reads_each_shared_block_once():
    forest = CheckedForest(1, 16)
    root = forest.root(64)
    kids = [forest.grow(root.fork(), 8) for _ in range(5)]
    plan = forest.plan(kids, [1] * 5)
    assert plan.tokens_stored == 64 + 5 * 8
    assert plan.tokens_logical == 5 * 72


def test_bad_arguments_name_the_offender():
    ops = CpuOps()
    forest = CheckedForest(2, 32)
    plan = forest.plan([forest.root(4)], [1])
    q = torch.randn(1, 4, 32)
    with pytest.raises(ValueError, match="isa must be"):
        CpuOps("avx9")
    with pytest.raises(ValueError, match=r"float32, bfloat16 or float16, not torch\.int8"):
        ops.pack_linear(torch.zeros(2, 2).char(), None)
    stored = quantized(2, 32, "int4")
    for change, message in (
        ({"minimum": None}, "4 bits has a minimum"),
        ({"values": stored.values + 1}, r"values must lie in \[0, 15\]"),
        ({"scale": stored.scale.float()}, r"scale must be torch\.float16 \(2, 1\), got .*float32"),
        ({"in_features": 70}, r"values must be torch\.int8 \(2, 96\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.pack_linear(replace(stored, **change), None)
    with pytest.raises(ValueError, match="rows of 3"):
        ops.linear(torch.zeros(1, 4), ops.pack_linear(torch.zeros(2, 3), None))
    with pytest.raises(ValueError, match=r"float64"):
        ops.linear(torch.zeros(1, 3).double(), ops.pack_linear(torch.zeros(2, 3), None))
    with pytest.raises(ValueError, match="the plan has 1 rows, q has 2"):
        ops.branch_attention(q.repeat(2, 1, 1), forest.k, forest.v, plan, 1.0)
    with pytest.raises(ValueError, match="strides"):
        ops.branch_attention(q.transpose(1, 2), forest.k, forest.v, plan, 1.0)
    with pytest.raises(ValueError, match=r"got 0 to 5"):
        ops.embedding(ops.pack_linear(torch.zeros(5, 3), None), torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="9 rows of a table of 4"):
        _ = forest.plan([forest.root(4)], [9]).native


# ---- logits ----


@pytest.mark.parametrize("vocab_size", [1, 15, 49, 1000])
def test_logit_stats(ops, vocab_size):
    logits = torch.randn(4, vocab_size) * 5
    got = ops.logit_stats(logits)
    for value, expected in zip(got, REFERENCE.logit_stats(logits.double()), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-5)
    for value, expected in zip(got, CpuOps("scalar").logit_stats(logits), strict=True):
        assert np.array_equal(value, expected)


@pytest.mark.parametrize("vocab_size", [1, 15, 64, 65, 1000])
@pytest.mark.parametrize("k", [1, 20, 1000])
def test_top_logits(ops, vocab_size, k):
    k = min(k, vocab_size)
    torch.manual_seed(vocab_size)
    # Ties, in the second row nothing else; rows with a stride.
    logits = (torch.randn(4, 2 * vocab_size) * 3).round()[:, vocab_size:]
    logits[1] = -torch.inf
    logits[2, vocab_size // 2 :] = -torch.inf
    values, tokens = ops.top_logits(logits, k)
    assert np.array_equal(values, REFERENCE.top_logits(logits, k)[0])
    for row, of_row, of_values in zip(logits.numpy(), tokens, values, strict=True):
        assert len(set(of_row.tolist())) == k and np.array_equal(row[of_row], of_values)
    # Of equal ones, the lowest ids.
    in_order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert np.array_equal(tokens, in_order.numpy())


def test_top_logits_of_what_is_no_number(ops):
    logits = torch.full((2, 100), torch.nan)
    logits[1, ::7] = 1.0
    _, tokens = ops.top_logits(logits, 30)
    assert tokens.min() >= 0 and tokens.max() < 100


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 31, 33, 64, 1000])
def test_mask_logits(ops, vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = torch.randn(5, 2 * vocab_size)[:, vocab_size:]  # rows with a stride
    logits[1, 0] = torch.nan
    words = rng.integers(-(2**31), 2**31, (5, -(-vocab_size // 32)), np.int64).astype(np.int32)
    words[2], words[3] = 0, -1
    got = ops.mask_logits(logits, words)
    for row in range(5):
        for token in range(vocab_size):
            allowed = int(words[row, token // 32]) >> (token % 32) & 1
            expected = logits[row, token].item() if allowed else -math.inf
            np.testing.assert_equal(got[row, token].item(), expected)
    np.testing.assert_array_equal(got, REFERENCE.mask_logits(logits, words))
    with pytest.raises(ValueError, match="5 rows of logits, 4 masks"):
        ops.mask_logits(logits, words[:4])
    with pytest.raises(ValueError, match="a bit for each token"):
        ops.mask_logits(logits, np.zeros((5, words.shape[1] + 1), np.int32))


def sample(ops, logits, uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    n = len(logits)
    return ops.sample(
        logits,
        np.full(n, temperature, np.float32),
        np.full(n, top_k, np.int32),
        np.full(n, top_p, np.float32),
        np.full(n, min_p, np.float32),
        np.broadcast_to(np.asarray(uniform, np.float64), (n,)).copy(),
    )


@given(
    seed=st.integers(0, 2**31),
    vocab_size=st.integers(1, 300),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 7, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_sample_equals_the_reference(seed, vocab_size, temperature, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values, so that ties at the cuts are common; exact in fp32 and in fp64.
    logits = torch.randint(-8, 9, (6, vocab_size), generator=generator).float()
    uniform = torch.rand(6, generator=generator, dtype=torch.float64).numpy()
    args = (temperature, top_k, top_p, min_p)
    expected = sample(REFERENCE, logits, uniform, *args)
    for isa in ISAS:
        got = sample(CpuOps(isa), logits, uniform, *args)
        if np.array_equal(got, expected):
            continue
        # The two may part only where the mass up to a cut or to u agrees to rounding.
        nudged = {
            tuple(sample(REFERENCE, logits, np.clip(uniform + d, 0, 1 - 1e-12), *args))
            for d in (-1e-5, 1e-5)
        } | {
            tuple(sample(REFERENCE, logits, uniform, temperature, top_k, min(1, top_p * s), min_p))
            for s in (1 - 1e-5, 1 + 1e-5)
        }
        assert tuple(got) in nudged, (isa, got, expected)


def test_sample_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]]).repeat(20000, 1)
    uniform = _C.uniforms(np.arange(20000, dtype=np.uint64), np.zeros(20000, np.int64), 0)
    counts = np.bincount(sample(CpuOps(), logits, uniform), minlength=5)
    p = torch.softmax(logits[0].double(), 0).numpy()
    chi_square = sum((c - 20000 * q) ** 2 / (20000 * q) for c, q in zip(counts, p) if q > 0)
    assert counts[3] == 0
    assert chi_square < 16.3  # 0.999 quantile, 3 degrees of freedom


def test_sample_flags_unusable_rows():
    logits = torch.zeros(4, 20)
    logits[0, 3] = torch.nan
    logits[1] = -torch.inf
    logits[2, 5] = torch.inf
    tokens = sample(CpuOps(), logits, 0.5)
    assert tokens[:3].tolist() == [-1, -1, -1] and tokens[3] == 10


# Known answers of Random123's kat_vectors for philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert list(_C.philox4x32(counter, key)) == expected


def test_uniforms_are_uniform_and_differ_between_keys():
    keys = np.array([_C.child_key(7, i) for i in range(50000)], np.uint64)
    u = _C.uniforms(keys, np.full(50000, 3), 0)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * 50000)
    assert len(np.unique(u)) == 50000
