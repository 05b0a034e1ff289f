"""What decides about drafts, in Triton and on the CPU, against its definition."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.kernels import (
    KV_DTYPES,
    CpuOps,
    ReferenceOps,
    acceptance,
    verify,
    verify_traversal,
    verify_typical,
)
from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.compact_kv import compact_kv
from parallel_decode.kernels.draft_tree import chain_parents
from parallel_decode.kernels.kv_format import (
    block_items,
    cache_views,
    read_keys,
    read_values,
    write_token,
)
from parallel_decode.kernels.philox import philox_uniform
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.residual import draw
from parallel_decode.kernels.triton_ops import TritonOps
from tests.draft_batch import DraftBatch, random_batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ISAS = _C.available_isas()
REFERENCE, TRITON = ReferenceOps(), TritonOps(DEVICE)
RULES = ["tree", "traversal"]

rules = pytest.mark.parametrize("rule", RULES)


def on_device(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


def assert_same(out: Acceptance, expected: Acceptance) -> None:
    for name, mine, theirs in zip(Acceptance._fields, out, expected):
        assert mine.dtype == theirs.dtype, name
        assert mine.tolist() == theirs.tolist(), name


def check(
    batch: DraftBatch, rule: str, replacement: bool, max_block: int = 8, **options: object
) -> Acceptance:
    """rule: "tree", "traversal"; max_block: of the tokens of one step; most vocabularies here take
    several."""
    columns = (
        *(batch.p, batch.q, batch.draft_tokens, batch.parents),
        *(batch.cu_nodes, batch.keys, batch.positions),
    )
    options = {"deterministic": batch.deterministic, **options}
    return check_rule(f"verify_{rule}", (*columns, replacement), max_block, **options)


def check_rule(
    rule: str, columns: tuple[object, ...], max_block: int = 8, **options: object
) -> Acceptance:
    expected = getattr(REFERENCE, rule)(*columns, **options)
    for isa in ISAS:
        assert_same(getattr(CpuOps(isa), rule)(*columns, **options), expected)
    with pytest.MonkeyPatch.context() as patch:
        for module in (verify, verify_traversal, verify_typical):
            patch.setattr(module, "MAX_BLOCK", max_block)
        options = {name: on_device(x) for name, x in options.items()}
        assert_same(getattr(TRITON, rule)(*map(on_device, columns), **options), expected)
    return expected


sizes = st.lists(st.integers(0, 8), min_size=1, max_size=3)
seeds = st.integers(0, 2**32)


# ---- random numbers ----


@triton.jit
def uniform_kernel(key_ptr, index_ptr, out_ptr, stream):
    i = tl.program_id(0)
    u = philox_uniform(tl.load(key_ptr + i), tl.load(index_ptr + i), stream)
    tl.store(out_ptr + i, u)


@pytest.mark.parametrize("stream", [0, 1, acceptance.ACCEPT_STREAM + 3])
def test_uniforms_are_those_of_the_native_generator(stream):
    rng = np.random.default_rng(stream)
    keys = np.r_[0, -1, rng.integers(-(2**63), 2**63, 30)]
    indices = np.r_[0, 2**32 - 1, 2**32, rng.integers(0, 2**62, 29)]
    out = torch.full((32,), torch.nan, dtype=torch.float64, device=DEVICE)
    uniform_kernel[(32,)](*map(on_device, map(torch.from_numpy, (keys, indices))), out, stream)
    expected = _C.uniforms(keys.view(np.uint64), indices, stream)
    assert out.tolist() == expected.tolist()


# ---- acceptance ----


either_rule = st.sampled_from(RULES)


@settings(max_examples=30)
@given(
    seeds, sizes, st.integers(1, 20), either_rule, st.booleans(), st.sampled_from([0.0, 0.3, 1.0])
)
def test_tree(seed, sizes, vocab_size, rule, replacement, deterministic):
    check(random_batch(seed, sizes, vocab_size, deterministic), rule, replacement)


@settings(max_examples=20)
@given(seeds, sizes, st.integers(1, 20), either_rule)
def test_tree_of_deterministic_nodes_needs_no_q(seed, sizes, vocab_size, rule):
    batch = replace(random_batch(seed, sizes, vocab_size), q=None)
    check(batch, rule, True, deterministic=None)


@settings(max_examples=15)
@given(seeds, sizes, st.integers(1, 20), st.booleans(), either_rule)
def test_chain(seed, sizes, vocab_size, has_q, rule):
    """No parents: each node continues the one before it."""
    batch = random_batch(seed, sizes, vocab_size, deterministic=0)
    q = batch.q if has_q else None
    expected = check(replace(batch, q=q, parents=None), rule, True, deterministic=None)
    parents = chain_parents(len(batch.draft_tokens), batch.cu_nodes)
    check_rule("verify_greedy", (random_argmax(batch), batch.draft_tokens, None, batch.cu_nodes))
    columns = (batch.draft_tokens, batch.cu_nodes, batch.keys, batch.positions)
    if rule == "tree":
        assert_same(acceptance.verify_chain(batch.p, q, *columns), expected)
        assert_same(verify.verify_chain(*map(on_device, (batch.p, q, *columns))), expected)
    alike = replace(batch, q=q, parents=parents)
    assert_same(check(alike, rule, False, deterministic=None), expected)


@pytest.mark.parametrize("seed", range(4))
def test_many_trees_on_the_cpu(seed):
    """A kernel in the interpreter takes longer than all of these."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        batch = random_batch(int(rng.integers(2**32)), [12, 7, 0], int(rng.integers(1, 30)))
        if rng.random() < 0.3:  # ties, and many a 0
            batch = replace(batch, p=(batch.p * 4).ceil() / 8, q=(batch.q * 4).ceil() / 8)
        for rule in RULES:
            columns = (batch.p, batch.q, batch.draft_tokens, batch.parents, batch.cu_nodes)
            columns = (*columns, batch.keys, batch.positions, bool(rng.random() < 0.5))
            options = {"deterministic": batch.deterministic, "max_depth": int(rng.integers(9))}
            expected = getattr(REFERENCE, f"verify_{rule}")(*columns, **options)
            for isa in ISAS:
                out = getattr(CpuOps(isa), f"verify_{rule}")(*columns, **options)
                assert_same(out, expected)


@rules
def test_a_vocabulary_of_many_stretches(rule):
    """Where the CPU sums up 512 weights at a time, and 16 in a vector."""
    for seed, vocab_size in enumerate((511, 512, 513, 1500)):
        check(random_batch(seed, [6, 6], vocab_size), rule, bool(seed % 2), max_block=1024)


@rules
def test_the_random_trees_accept_and_reject(rule):
    """What the tests above compare is no matter of course."""
    lengths, tokens = set(), set()
    for replacement in (True, False):
        out = check(random_batch(0, [12] * 8, 12), rule, replacement, max_block=16)
        lengths |= set(out.num_accepted.tolist())
        tokens |= set(out.next_token.tolist())
    assert lengths >= {0, 1, 2} and len(tokens) > 6


@pytest.mark.parametrize("replacement", [True, False])
@rules
def test_many_children(rule, replacement):
    """Rejections in a row, of drawn and deterministic siblings with equal tokens among them."""
    for seed in range(10):
        batch = random_batch(seed, [10, 10], 12)
        row = batch.q[~batch.deterministic][0]
        batch.q[~batch.deterministic] = row
        check(replace(batch, parents=torch.full_like(batch.parents, -1)), rule, replacement)


@rules
def test_a_vocabulary_in_one_block_and_strided_rows(rule):
    batch = random_batch(0, [5, 5], 300)
    p = torch.full((12, 700), torch.nan)
    p[:, :300] = batch.p
    check(replace(batch, p=p[:, :300]), rule, False, max_block=4096)


@pytest.mark.parametrize("max_depth", [0, 1, 2, 9])
def test_nodes_below_the_largest_depth_are_left_out(max_depth):
    batch = random_batch(1, [8, 0, 8, 8], 6)
    for rule in RULES:
        out = check(batch, rule, True, max_depth=max_depth)
        assert out.path.shape == (4, max_depth)
    columns = (random_argmax(batch), batch.draft_tokens, batch.parents, batch.cu_nodes)
    check_rule("verify_greedy", columns, max_depth=max_depth)
    columns = (*columns[1:], batch.keys, batch.positions)
    check_rule("verify_typical", (batch.p, *columns), max_depth=max_depth)


@settings(max_examples=25)
@given(seeds, either_rule, st.booleans(), st.booleans(), st.sampled_from([np.nan, 0.0]))
def test_broken_rows(seed, rule, replacement, whole_rows, broken):
    """A branch that meets one may have no result; others are as they were."""
    batch, rng = random_batch(seed, [6, 6, 6], 10), np.random.default_rng(seed)
    before = check(batch, rule, replacement)
    parent = int(rng.integers(-1, 5))
    siblings = 6 + (batch.parents[6:12] == parent).nonzero()[:, 0]
    mask = torch.from_numpy(rng.random(10) < 0.2) | whole_rows
    row = batch.row(1, parent)
    if rng.random() < 0.5:
        batch.p[row] = torch.where(mask, broken, batch.p[row])
    if rng.random() < 0.5:
        batch.q[siblings] = torch.where(mask, broken, batch.q[siblings])
    for column, broken_column in zip(before, check(batch, rule, replacement)):
        assert torch.equal(broken_column[[0, 2]], column[[0, 2]])


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("where", ["p", "q"])
@rules
def test_a_nan_is_seen_at_a_token_that_was_rejected(rule, where, replacement):
    """Where w is 0 of its own: the first node is deterministic, the second one was drawn."""
    p, q = torch.tensor([[0.0, 0.0, 1.0]] * 3), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    (p if where == "p" else q)[:, 0] = torch.nan
    two = torch.tensor([0, 1])
    flags, parents = torch.tensor([True, False]), torch.tensor([-1, -1], dtype=torch.int32)
    cu_nodes = torch.tensor([0, 2], dtype=torch.int32)
    batch = DraftBatch(p, q, two, parents, cu_nodes, two[:1], two[:1], flags)
    assert check(batch, rule, replacement).next_token.tolist() == [-1]


@settings(max_examples=25)
@given(seeds, either_rule, st.booleans())
def test_rows_with_any_sum(seed, rule, replacement):
    """None of a distribution, but no row's sum may be taken for 1 where the definition sums it."""
    batch = random_batch(seed, [4, 4, 4], 10)
    check(replace(batch, p=batch.p * (0.5 + torch.rand(len(batch.p), 1))), rule, replacement)


def copies(
    p: list[list[float]], q: list[list[float]], tokens: list[int], parents: list[int], count: int
) -> DraftBatch:
    """Of one tree, each with a key of its own."""
    num_nodes = len(tokens)
    return DraftBatch(
        torch.tensor(p).repeat(count, 1),
        torch.tensor(q).repeat(count, 1),
        torch.tensor(tokens).repeat(count),
        torch.tensor(parents, dtype=torch.int32).repeat(count),
        torch.arange(0, count * num_nodes + 1, num_nodes, dtype=torch.int32),
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count * num_nodes, dtype=torch.bool),
    )


@pytest.mark.parametrize("parents", [[-1, 0], [-1, -1]], ids=["chain", "siblings"])
@rules
def test_where_rounding_leaves_nothing_p_stays(rule, parents):
    """q is p or more at every token: its sum is too large, as that of rounding may be."""
    batch = copies([[0.25, 0.25, 0.5]] * 3, [[1.0, 0.5, 0.5]] * 2, [0, 0], parents, 20)
    for replacement in (True, False):
        out = check(batch, rule, replacement)
        assert len(set(out.next_token.tolist()) - {-1}) == 3 and (out.num_accepted == 0).any()


@rules
def test_where_rounding_leaves_nothing_the_last_residual_stays(rule):
    """A sibling leaves (0, 1/2, 1/2), of which the next one leaves nothing; one that is no token
    stands before them."""
    q = [[np.nan] * 3, [0.9] * 3, [0.9] * 3, [0.9] * 3]
    batch = copies([[0.3, 1.0, 1.0]] * 5, q, [-1, 0, 1, 2], [-1] * 4, 30)
    by_token = copies([[0.3, 0.5, 0.5]] * 5, q, [-1, 0, 1, 2], [-1] * 4, 30)
    by_token.deterministic[1::4] = True
    for drafts in (batch, by_token):
        out = check(drafts, rule, True)
        rejected = out.next_token[out.num_accepted == 0]
        assert set(rejected.tolist()) == {1, 2} and (out.path != 3).all()


@rules
def test_where_a_deterministic_token_was_all_there_is_p_stays(rule):
    """Its row sums up to less than 1, and so it can be rejected."""
    batch = copies([[0.5, 0.0, 0.0]] * 2, [[np.nan] * 3], [0], [-1], 20)
    batch.deterministic[:] = True
    out = check(batch, rule, True)
    assert (out.next_token == 0).all() and set(out.num_accepted.tolist()) == {0, 1}


@pytest.mark.parametrize("where", ["p", "q"])
@rules
def test_a_nan_behind_a_node_is_seen_where_its_child_fails(rule, where):
    p, q = [[0.2, 0.4, 0.4]] * 3, [[0.4, 0.4, 0.2]] * 2
    batch = copies(p, q, [1, 0], [-1, 0], 30)
    rows = batch.p[1::3] if where == "p" else batch.q[1::2]
    rows[:, 2] = torch.nan
    out = check(batch, rule, True)
    assert (out.next_token == -1).any() and (out.num_accepted == 2).any()


@rules
def test_a_nan_stops_its_branch(rule):
    batch = random_batch(3, [4, 4, 4], 10)
    batch.p[batch.row(1)] = torch.nan
    out = check(batch, rule, True)
    assert out.num_accepted[1] == 0 and out.next_token[1] == -1 and (out.path[1] == -1).all()
    assert (out.next_token[[0, 2]] >= 0).all()


@rules
def test_any_number_of_threads_decides_the_same(rule):
    batch = random_batch(5, [9] * 20, 40)
    columns = (batch.p, batch.q, batch.draft_tokens, batch.parents, batch.cu_nodes)
    columns = (*columns, batch.keys, batch.positions, True, batch.deterministic)
    expected, threads = getattr(REFERENCE, f"verify_{rule}")(*columns), _C.num_threads()
    try:
        for count in (1, 3):
            _C.set_num_threads(count)
            assert_same(getattr(CpuOps(), f"verify_{rule}")(*columns), expected)
    finally:
        _C.set_num_threads(threads)


@triton.jit
def draw_kernel(p_ptr, out_ptr, target, vocab_size, BLOCK: tl.constexpr):
    target = tl.full([], 1.0, tl.float64) * target
    c = target * 0
    nodes = (p_ptr, None, None)
    tl.store(
        out_ptr, draw(target, vocab_size, p_ptr, c + 1, None, 0, c, nodes, 0, 0, 0, False, BLOCK)
    )


@pytest.mark.parametrize(
    ("target", "token"),
    [(0.0, 1), (0.25, 2), (0.5, 9), (0.74, 9), (0.75, 10), (1.0, 10)],
)
def test_draw(target, token):
    """Beyond the sum, as rounding may put it, the last token with weight is drawn."""
    p = torch.zeros(20, device=DEVICE)
    p[[1, 2, 9, 10]] = 0.25
    out = torch.full((1,), -7, device=DEVICE)
    draw_kernel[(1,)](p, out, target, 20, BLOCK=8)
    assert out.tolist() == [token]


# ---- greedy ----


def random_argmax(batch: DraftBatch) -> torch.Tensor:
    return torch.where(batch.p.isnan().any(1), -1, batch.p.argmax(1))


@given(seeds, st.lists(st.integers(0, 12), min_size=1, max_size=3), st.integers(1, 3))
def test_greedy(seed, sizes, vocab_size):
    batch = random_batch(seed, sizes, vocab_size)
    argmax = random_argmax(batch)
    argmax[torch.rand(len(argmax)) < 0.1] = -1
    columns = (argmax, batch.draft_tokens, batch.parents, batch.cu_nodes)
    check_rule("verify_greedy", columns)


def test_greedy_of_more_nodes_than_a_block():
    batch = random_batch(0, [150, 3, 70], 2)
    columns = (random_argmax(batch), batch.draft_tokens, batch.parents, batch.cu_nodes)
    assert check_rule("verify_greedy", columns).num_accepted.max() > 1


# ---- typical ----


@settings(max_examples=30)
@given(seeds, sizes, st.integers(1, 20), st.booleans(), st.sampled_from([0.0, 0.09, 0.4, 1.0]))
def test_typical(seed, sizes, vocab_size, is_broken, epsilon):
    batch, rng = random_batch(seed, sizes, vocab_size), np.random.default_rng(seed)
    if is_broken:
        batch.p[torch.from_numpy(rng.random(batch.p.shape) < 0.05)] = torch.nan
    parents = batch.parents if rng.random() < 0.7 else None
    columns = (batch.p, batch.draft_tokens, parents, batch.cu_nodes, batch.keys, batch.positions)
    check_rule("verify_typical", columns, epsilon=epsilon, alpha=0.3)


def test_typical_looks_at_the_entropy():
    """Of 100 equal tokens each has 0.01, below epsilon and above 0.3 exp(-H) = 0.003."""
    p = torch.full((2, 100), 0.01)
    p[1] = torch.tensor([0.96, *[0.04 / 99] * 99])
    zero = torch.zeros(1, dtype=torch.int64)
    cu_nodes = torch.tensor([0, 1], dtype=torch.int32)
    for row, token, accepted in ((0, 5, 1), (1, 5, 0), (1, 0, 1)):
        columns = (p[[row, row]], zero + token, None, cu_nodes, zero, zero)
        assert check_rule("verify_typical", columns).num_accepted.tolist() == [accepted]
    law = torch.softmax(torch.randn(100, dtype=torch.float64), 0).float()
    entropy = -(law.double() * law.double().log()).sum().item()
    for alpha, accepted in ((0.9999, 1), (1.0001, 0)):
        alpha *= law[5].item() * np.exp(entropy)
        columns = (law.repeat(2, 1), zero + 5, None, cu_nodes, zero, zero, 1.0, alpha)
        assert check_rule("verify_typical", columns).num_accepted.tolist() == [accepted]


# ---- KV ----


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [
        (torch.float32, 20),
        (torch.float16, 64),
        (torch.bfloat16, 128),
        (torch.float8_e4m3fn, 72),
        (torch.int8, 8),
    ],
    ids=str,
)
def test_compact_kv(dtype, head_dim):
    rng = np.random.default_rng(0)
    shape = (2, 2, 12, 3, BLOCK_SIZE, head_dim)
    num_bytes = torch.empty(0, dtype=dtype).element_size() * head_dim
    raw = torch.from_numpy(rng.integers(0, 256, (*shape[:-1], num_bytes), dtype=np.uint8))
    # Each branch has blocks of its own, in any order; its draft begins in the middle of one.
    blocks = rng.permutation(12).reshape(4, 3)
    source, target = np.full((2, 4, 7), -1)
    for branch, num_moves in enumerate((7, 0, 1, 4)):
        begin = int(rng.integers(2 * BLOCK_SIZE - 8, 2 * BLOCK_SIZE))
        path = np.sort(rng.choice(BLOCK_SIZE, num_moves, replace=False))
        for slots, positions in ((source, begin + path), (target, begin + np.arange(num_moves))):
            slots[branch, :num_moves] = (
                blocks[branch, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
            )
    slots = torch.from_numpy(source), torch.from_numpy(target)
    expected = raw.clone()
    acceptance.compact_kv(expected, *slots)
    assert not torch.equal(expected, raw)
    storage = raw.view(dtype).to(DEVICE)
    compact_kv(storage, *map(on_device, slots))
    assert torch.equal(storage.view(torch.uint8).cpu(), expected)


def test_compact_kv_of_slots_that_swap():
    """No order of moves gives this: all is read before any is written."""
    storage = torch.randn(1, 2, 1, 1, BLOCK_SIZE, 8)
    expected = storage.clone()
    expected[..., [3, 4, 5], :] = storage[..., [4, 5, 3], :]
    out = storage.to(DEVICE)
    compact_kv(out, on_device(torch.tensor([[4, 5, 3]])), on_device(torch.tensor([[3, 4, 5]])))
    assert torch.equal(out.cpu(), expected)
    compact_kv(out, *[torch.empty(1, 0, dtype=torch.int64, device=DEVICE)] * 2)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("head_dim", [32, 80])
def test_the_op_table_moves_tokens_as_they_are_stored(dtype, head_dim):
    """In the CPU's layout, keys across the tokens of a block and scales behind them."""
    num_layers, num_blocks, num_heads = 2, 5, 3
    items = num_heads * block_items(KV_DTYPES[dtype], head_dim)
    storage = torch.zeros(num_layers, 2, num_blocks, items, dtype=KV_DTYPES[dtype])
    caches = [cache_views(k, v, num_heads, head_dim, False) for k, v in storage]
    for k_cache, v_cache in caches:
        for slot in range(num_blocks * BLOCK_SIZE):
            k, v = torch.randn(2, num_heads, head_dim)
            write_token(k, v, k_cache, v_cache, *divmod(slot, BLOCK_SIZE))

    def tokens(cache: torch.Tensor) -> torch.Tensor:
        views = [cache_views(k, v, num_heads, head_dim, False) for k, v in cache]
        keys = [read_keys(k, b, head_dim).permute(2, 0, 1) for k, _ in views for b in range(5)]
        values = [read_values(v, b, head_dim).transpose(0, 1) for _, v in views for b in range(5)]
        shape = (2 * num_layers, num_blocks * BLOCK_SIZE, num_heads, head_dim)
        return torch.cat([*keys, *values]).reshape(shape)

    # One path lies across two blocks and overlaps itself, one swaps, one is short.
    source = torch.tensor([[15, 17, 20, 21], [65, 64, -1, -1], [40, -1, -1, -1]])
    target = torch.tensor([[15, 16, 17, 18], [64, 65, -1, -1], [33, -1, -1, -1]])
    before, used = tokens(storage), source >= 0
    expected = before.clone()
    expected[:, target[used]] = before[:, source[used]]
    for ops in (REFERENCE, *map(CpuOps, ISAS[:1])):
        moved = storage.clone()
        ops.compact_kv(moved, num_heads, head_dim, source, target)
        assert torch.equal(tokens(moved), expected)


def test_the_op_table_moves_tokens_on_a_gpu():
    storage = torch.randn(2, 2, 3, 2 * BLOCK_SIZE * 8, device=DEVICE)
    expected = storage.clone()
    slots = on_device(torch.tensor([[5, 40, -1]])), on_device(torch.tensor([[4, 5, -1]]))
    acceptance.compact_kv(expected.view(2, 2, 3, 2, BLOCK_SIZE, 8), *slots)
    TRITON.compact_kv(storage, 2, 8, *slots)
    assert torch.equal(storage, expected)


# ---- shapes ----


@pytest.mark.parametrize("ops", [REFERENCE, TRITON, CpuOps()], ids=["definition", "triton", "cpu"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": torch.ones(5, 6)}, r"p must be \[7, vocab_size\].*\(5, 6\)"),
        ({"p": torch.ones(7)}, r"p must be.*\(7,\)"),
        ({"p": torch.ones(7, 0)}, r"p must be.*\(7, 0\)"),
        ({"q": torch.ones(5, 4)}, r"q must be torch.float32 \(5, 6\).*\(5, 4\)"),
        ({"q": torch.ones(5, 6, dtype=torch.float16)}, "float16"),
        ({"draft_tokens": torch.ones(5, dtype=torch.int32)}, "draft_tokens.*int32"),
        ({"parents": torch.ones(4, dtype=torch.int32)}, r"parents must hold 5.*\(4,\)"),
        ({"cu_nodes": torch.zeros(0, dtype=torch.int32)}, r"cu_nodes must hold 1.*\(0,\)"),
        ({"keys": torch.ones(1, dtype=torch.int64)}, r"keys must hold 2.*\(1,\)"),
        ({"positions": torch.ones(2)}, "positions.*float32"),
        ({"deterministic": torch.ones(5)}, "deterministic.*float32"),
        ({"max_depth": -2}, "-2"),
        ({"parents": torch.tensor([-1, 0, 2, 0, 0], dtype=torch.int32)}, "node 2 .*node 2"),
        (
            {"cu_nodes": torch.tensor([0, 6, 5], dtype=torch.int32)},
            "cu_nodes must rise from 0 to 5",
        ),
        (
            {"cu_nodes": torch.tensor([0, 3, 4], dtype=torch.int32)},
            "cu_nodes must rise from 0 to 5",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_of_trees(ops, change, message):
    columns = {**vars(random_batch(0, [3, 2], 6)), **change}
    if ops is TRITON:
        columns = {n: on_device(x) for n, x in columns.items()}
    for rule in RULES:
        with pytest.raises(ValueError, match=message):
            getattr(ops, f"verify_{rule}")(**columns, replacement=True)


@pytest.mark.parametrize("ops", [TRITON, CpuOps()], ids=["triton", "cpu"])
@rules
def test_bad_arguments_of_kernels_alone(ops, rule):
    batch = vars(random_batch(0, [3, 2], 6))
    for name, x in (("p", batch["p"].double()), ("p", batch["p"].T.contiguous().T)):
        columns = {**batch, name: x, "q": batch["q"].to(x.dtype)}
        if ops is TRITON:
            columns = {n: on_device(column) for n, column in columns.items()}
        with pytest.raises(ValueError, match="p must be float32 and contiguous"):
            getattr(ops, f"verify_{rule}")(**columns, replacement=True)


@pytest.mark.parametrize("ops", [REFERENCE, TRITON, CpuOps()], ids=["definition", "triton", "cpu"])
def test_bad_arguments_of_greedy(ops):
    batch = random_batch(0, [3, 2], 6)
    columns = (torch.ones(5, dtype=torch.int64), batch.draft_tokens, batch.parents, batch.cu_nodes)
    with pytest.raises(ValueError, match=r"target_argmax must hold 7.*\(5,\)"):
        ops.verify_greedy(*map(on_device, columns) if ops is TRITON else columns)


@pytest.mark.parametrize("function", [acceptance.compact_kv, compact_kv])
def test_bad_arguments_of_compact_kv(function):
    storage = torch.zeros(1, 2, 3, 1, BLOCK_SIZE, 8, device=DEVICE)
    slots = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 1, 8\)"):
        function(storage[..., 0, :], slots, slots)
    with pytest.raises(ValueError, match=r"target_slots.*\(2, 2\)"):
        function(storage, slots, slots[:, :2])
    with pytest.raises(ValueError, match=r"source_slots.*int32"):
        function(storage, slots.int(), slots)


def test_bad_arguments_of_the_compacting_kernel():
    storage = torch.zeros(1, 2, 3, 1, BLOCK_SIZE, 8, device=DEVICE)
    slots = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="rows of 12 bytes"):
        compact_kv(storage[..., :3].contiguous(), slots, slots)
    with pytest.raises(ValueError, match="storage must be contiguous"):
        compact_kv(storage[..., :2], slots, slots)
    with pytest.raises(ValueError, match="source_slots must be contiguous"):
        compact_kv(storage, slots.T, slots.T)


def test_bad_arguments_of_compact_kv_on_the_cpu():
    ops, storage = CpuOps(), torch.zeros(1, 2, 3, BLOCK_SIZE * 32)
    slots = torch.zeros(2, 3, dtype=torch.int64)
    for columns, message in (
        ((storage.double(), 1, 32, slots, slots), "float64"),
        (
            (storage, 2, 32, slots, slots),
            r"\[num_layers, 2, num_blocks, 1024\], got \(1, 2, 3, 512\)",
        ),
        ((storage[..., ::2], 1, 16, slots, slots), "storage must be contiguous"),
        ((storage, 1, 32, slots, slots.T), "target_slots must be contiguous"),
        ((storage, 1, 32, slots, slots[:, :2].clone()), r"target_slots.*\(2, 2\)"),
        ((storage, 1, 32, slots.int(), slots.int()), "source_slots.*int32"),
        ((storage, 1, 32, slots, slots + 48), "there are 48 slots, a move is from 0 to 48"),
        ((storage, 1, 32, slots + 50, slots), "there are 48 slots, a move is from 50 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.compact_kv(*columns)
