"""The Triton kernels of acceptance against their definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.kernels import acceptance, verify
from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.compact_kv import compact_kv
from parallel_decode.kernels.philox import philox_uniform
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.residual import draw
from parallel_decode.kernels.verify_greedy import verify_greedy
from tests.draft_batch import DraftBatch, random_batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.to(DEVICE)


def assert_same(out: Acceptance, expected: Acceptance) -> None:
    for name, mine, theirs in zip(Acceptance._fields, out, expected):
        assert mine.dtype == theirs.dtype, name
        assert mine.tolist() == theirs.tolist(), name


def check_tree(
    batch: DraftBatch, replacement: bool, max_block: int = 8, **options: object
) -> Acceptance:
    """max_block: of the tokens of one step; most vocabularies here take several."""
    columns = (
        *(batch.p, batch.q, batch.draft_tokens, batch.parents),
        *(batch.cu_nodes, batch.keys, batch.positions),
    )
    options = {"deterministic": batch.deterministic, **options}
    expected = acceptance.verify_tree(*columns, replacement, **options)
    options["deterministic"] = on_device(options["deterministic"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "MAX_BLOCK", max_block)
        out = verify.verify_tree(*map(on_device, columns), replacement, **options)
    assert_same(out, expected)
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


@given(seeds, sizes, st.integers(1, 20), st.booleans(), st.sampled_from([0.0, 0.3, 1.0]))
def test_tree(seed, sizes, vocab_size, replacement, deterministic):
    check_tree(random_batch(seed, sizes, vocab_size, deterministic), replacement)


@given(seeds, sizes, st.integers(1, 20))
def test_tree_of_deterministic_nodes_needs_no_q(seed, sizes, vocab_size):
    batch = replace(random_batch(seed, sizes, vocab_size), q=None)
    check_tree(batch, True, deterministic=None)


@given(seeds, sizes, st.integers(1, 20), st.booleans())
def test_chain(seed, sizes, vocab_size, has_q):
    batch = random_batch(seed, sizes, vocab_size, deterministic=0)
    columns = (
        *(batch.p, batch.q if has_q else None, batch.draft_tokens),
        *(batch.cu_nodes, batch.keys, batch.positions),
    )
    expected = acceptance.verify_chain(*columns)
    assert_same(verify.verify_chain(*map(on_device, columns)), expected)


def test_the_random_trees_accept_and_reject():
    """What the tests above compare is no matter of course."""
    lengths, tokens = set(), set()
    for replacement in (True, False):
        out = check_tree(random_batch(0, [12] * 30, 12), replacement)
        lengths |= set(out.num_accepted.tolist())
        tokens |= set(out.next_token.tolist())
    assert lengths >= {0, 1, 2} and len(tokens) > 6


@pytest.mark.parametrize("replacement", [True, False])
def test_many_children(replacement):
    """Rejections in a row, of drawn and deterministic siblings with equal tokens among them."""
    for seed in range(20):
        batch = random_batch(seed, [10, 10], 12)
        row = batch.q[~batch.deterministic][0]
        batch.q[~batch.deterministic] = row
        check_tree(replace(batch, parents=torch.full_like(batch.parents, -1)), replacement)


def test_a_vocabulary_in_one_block_and_strided_rows():
    batch = random_batch(0, [5, 5], 300)
    p = torch.full((12, 700), torch.nan)
    p[:, :300] = batch.p
    check_tree(replace(batch, p=p[:, :300]), False, max_block=4096)


@pytest.mark.parametrize("max_depth", [0, 1, 2, 9])
def test_nodes_below_the_largest_depth_are_left_out(max_depth):
    batch = random_batch(1, [8, 0, 8, 8], 6)
    out = check_tree(batch, True, max_depth=max_depth)
    assert out.path.shape == (4, max_depth)
    columns = (random_argmax(batch), batch.draft_tokens, batch.parents, batch.cu_nodes)
    expected = acceptance.verify_greedy(*columns, max_depth=max_depth)
    assert_same(verify_greedy(*map(on_device, columns), max_depth=max_depth), expected)


@given(seeds, st.booleans(), st.booleans(), st.sampled_from([np.nan, 0.0]))
def test_broken_rows(seed, replacement, whole_rows, broken):
    """A branch that meets one may have no result; others are as they were."""
    batch, rng = random_batch(seed, [6, 6, 6], 10), np.random.default_rng(seed)
    before = check_tree(batch, replacement)
    parent = int(rng.integers(-1, 5))
    siblings = 6 + (batch.parents[6:12] == parent).nonzero()[:, 0]
    mask = torch.from_numpy(rng.random(10) < 0.2) | whole_rows
    row = batch.row(1, parent)
    if rng.random() < 0.5:
        batch.p[row] = torch.where(mask, broken, batch.p[row])
    if rng.random() < 0.5:
        batch.q[siblings] = torch.where(mask, broken, batch.q[siblings])
    for column, broken_column in zip(before, check_tree(batch, replacement)):
        assert torch.equal(broken_column[[0, 2]], column[[0, 2]])


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("where", ["p", "q"])
def test_a_nan_is_seen_at_a_token_that_was_rejected(where, replacement):
    """Where w is 0 of its own: the first node is deterministic, the second one was drawn."""
    p, q = torch.tensor([[0.0, 0.0, 1.0]] * 3), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    (p if where == "p" else q)[:, 0] = torch.nan
    two = torch.tensor([0, 1])
    flags, parents = torch.tensor([True, False]), torch.tensor([-1, -1], dtype=torch.int32)
    cu_nodes = torch.tensor([0, 2], dtype=torch.int32)
    batch = DraftBatch(p, q, two, parents, cu_nodes, two[:1], two[:1], flags)
    assert check_tree(batch, replacement).next_token.tolist() == [-1]


@given(seeds, st.booleans())
def test_rows_with_any_sum(seed, replacement):
    """None of a distribution, but no row's sum may be taken for 1 where the definition sums it."""
    batch = random_batch(seed, [4, 4, 4], 10)
    check_tree(replace(batch, p=batch.p * (0.5 + torch.rand(len(batch.p), 1))), replacement)


def test_a_nan_stops_its_branch():
    batch = random_batch(3, [4, 4, 4], 10)
    batch.p[batch.row(1)] = torch.nan
    out = check_tree(batch, True)
    assert out.num_accepted[1] == 0 and out.next_token[1] == -1 and (out.path[1] == -1).all()
    assert (out.next_token[[0, 2]] >= 0).all()


@triton.jit
def draw_kernel(p_ptr, out_ptr, target, vocab_size, BLOCK: tl.constexpr):
    target = tl.full([], 1.0, tl.float64) * target
    c = target * 0
    nodes = (p_ptr, None, None)
    tl.store(out_ptr, draw(target, vocab_size, p_ptr, None, 0, c, nodes, 0, 0, 0, False, BLOCK))


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
    expected = acceptance.verify_greedy(*columns)
    assert_same(verify_greedy(*map(on_device, columns)), expected)


def test_greedy_of_more_nodes_than_a_block():
    batch = random_batch(0, [150, 3, 70], 2)
    columns = (random_argmax(batch), batch.draft_tokens, batch.parents, batch.cu_nodes)
    expected = acceptance.verify_greedy(*columns)
    assert expected.num_accepted.max() > 1
    assert_same(verify_greedy(*map(on_device, columns)), expected)


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


# ---- shapes ----


@pytest.mark.parametrize("module", [acceptance, verify], ids=["definition", "kernel"])
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
        ({"cu_nodes": torch.tensor([0, 6, 5], dtype=torch.int32)}, r"\[0, 6, 5\]"),
        ({"cu_nodes": torch.tensor([0, 3, 4], dtype=torch.int32)}, r"\[0, 3, 4\]"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_of_trees(module, change, message):
    columns = {**vars(random_batch(0, [3, 2], 6)), **change}
    columns = {n: on_device(x) if isinstance(x, torch.Tensor) else x for n, x in columns.items()}
    with pytest.raises(ValueError, match=message):
        module.verify_tree(**columns, replacement=True)


def test_bad_arguments_of_kernels_alone():
    batch = vars(random_batch(0, [3, 2], 6))
    for name, x in (("p", batch["p"].double()), ("p", batch["p"].T.contiguous().T)):
        columns = {**batch, name: x, "q": batch["q"].to(x.dtype)}
        columns = {n: on_device(column) for n, column in columns.items()}
        with pytest.raises(ValueError, match="p must be float32 and contiguous"):
            verify.verify_tree(**columns, replacement=True)


@pytest.mark.parametrize("function", [acceptance.verify_greedy, verify_greedy])
def test_bad_arguments_of_greedy(function):
    batch = random_batch(0, [3, 2], 6)
    columns = map(on_device, (batch.draft_tokens, batch.parents, batch.cu_nodes))
    with pytest.raises(ValueError, match=r"target_argmax must hold 7.*\(5,\)"):
        function(torch.ones(5, dtype=torch.int64, device=DEVICE), *columns)


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
