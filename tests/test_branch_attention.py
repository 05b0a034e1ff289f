"""The Triton attention kernels in the interpreter, against the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.kernels import ReferenceOps
from parallel_decode.kernels.branch_attention import branch_attention
from parallel_decode.kernels.device_plan import DevicePlan
from parallel_decode.kernels.launch import H100, AttentionShape, Card
from parallel_decode.kernels.merge_states import merge_states
from tests.accuracy import assert_as_accurate_as_torch
from tests.forest import Forest, tree_masks
from tests.test_work_plan import TINY, forests

REFERENCE = ReferenceOps()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check(
    forest: Forest,
    plan,
    num_heads: int,
    window: int | None = None,
    softcap: float | None = None,
    card: Card = H100,
    dtype: torch.dtype | None = None,
    **scales: torch.Tensor,
) -> DevicePlan:
    """Output and lse of a plan; q lies in a wider projection, as in the model."""
    num_kv_heads, head_dim = forest.k.shape[1], forest.head_dim
    dtype = dtype or forest.k.dtype
    shape = AttentionShape(num_heads, num_kv_heads, head_dim, forest.k.element_size(), window)
    device_plan = DevicePlan(shape, card, DEVICE)
    device_plan.make(plan)
    qkv = torch.randn(plan.num_rows, num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    q = qkv[:, :num_heads]
    scale = head_dim**-0.5
    lse = torch.full((plan.num_rows, num_heads), torch.nan, device=DEVICE)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=DEVICE)
    returned = branch_attention(
        qkv.to(DEVICE)[:, :num_heads],
        forest.k.to(DEVICE),
        forest.v.to(DEVICE),
        device_plan,
        scale,
        window,
        softcap,
        *(scales[name].to(DEVICE) if scales else None for name in ("k_scale", "v_scale")),
        out=out,
        lse=lse,
    )
    assert returned is out
    args = (forest.k, forest.v, plan, scale, window, softcap)
    exact = REFERENCE.branch_attention_lse(q.double(), *args, **scales)
    same = REFERENCE.branch_attention_lse(q.float(), *args, **scales)
    # What plain PyTorch would give in this dtype: the fp32 result, rounded.
    assert_as_accurate_as_torch(out, exact[0], rounded_like_torch(same[0], dtype))
    torch.testing.assert_close(lse.cpu().double(), exact[1], rtol=1e-3, atol=LSE_SLACK[dtype])
    return device_plan


LSE_SLACK = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def rounded_like_torch(out: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights are rounded to `dtype` before they meet the values, and the result once more."""
    if dtype == torch.float32:
        return out
    return out.to(dtype).float() + torch.finfo(dtype).eps * 0.5 * out.abs().amax()


SHAPES = [(4, 4, 64), (8, 2, 128), (7, 1, 96), (9, 3, 64), (16, 1, 64), (2, 2, 256), (6, 3, 80)]
DTYPES = [torch.float32, torch.float16]


def ragged(forest: Forest):
    """Trees of depth 3, a root alone, a chunk of a prompt; and how many rows each has."""
    root = forest.root(37)
    kids = [forest.grow(root.fork(), n) for n in (1, 11, 12, 1)]
    grandkids = [forest.grow(kids[1].fork(), n) for n in (1, 40, 3)]
    lone, long = forest.root(1), forest.root(80)
    return [kids[0], *grandkids, kids[2], kids[3], lone, long], [1, 1, 40, 2, 5, 1, 1, 80]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), SHAPES)
def test_ragged_forests(num_heads, num_kv_heads, head_dim, dtype):
    forest = Forest(num_kv_heads, head_dim, 60, dtype, head_dim_innermost=True, poisoned=True)
    check(forest, forest.plan(*ragged(forest)), num_heads)


@pytest.mark.parametrize("window", [1, 13, 100])
def test_sliding_windows(window):
    forest = Forest(2, 64, 60, head_dim_innermost=True, poisoned=True)
    check(forest, forest.plan(*ragged(forest)), 6, window)


@pytest.mark.parametrize("softcap", [0.5, 30.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softcap(softcap, dtype):
    forest = Forest(2, 64, 60, dtype, head_dim_innermost=True, poisoned=True)
    check(forest, forest.plan(*ragged(forest)), 6, softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eight_bit_keys_with_a_scale_a_head(dtype):
    forest = Forest(3, 64, 60, torch.float8_e4m3fn, head_dim_innermost=True, poisoned=True)
    scales = {"k_scale": torch.rand(3) + 0.5, "v_scale": torch.rand(3) + 0.5}
    check(forest, forest.plan(*ragged(forest)), 6, dtype=dtype, **scales)


@settings(max_examples=8)
@given(forests(), st.sampled_from([H100, TINY]), st.sampled_from([1, 3, 8]), st.integers(0, 99))
def test_random_forests(made_forest, card, group, seed):
    shape_of, tables, rows = made_forest
    torch.manual_seed(seed)
    # The same tables over a cache in the layout of a GPU, 16 numbers a head padded to a tile.
    forest = Forest(2, 16, 400, head_dim_innermost=True)
    check(forest, shape_of.plan(tables[:8], rows[:8]), 2 * group, card=card)


@settings(max_examples=8)
@given(
    parents=st.integers(1, 64).flatmap(
        lambda n: st.tuples(*(st.integers(-1, i - 1) for i in range(n)))
    ),
    prefix=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_draft_trees_see_their_own_path(parents, prefix, seed):
    torch.manual_seed(seed)
    forest = Forest(2, 32, 40, head_dim_innermost=True, poisoned=True)
    root = forest.root(prefix)
    drafted = forest.grow(root.fork(), len(parents))
    other = forest.grow(root.fork(), 3)
    plain = forest.grow(root.fork(), 3)
    masks = np.array([*tree_masks(list(parents)), 1, 2 | 1, 0, 0], np.uint64)
    check(forest, forest.plan([drafted, other, plain], [len(parents), 2, 2], masks), 4)


def test_a_plan_without_drafts_does_not_keep_the_masks_of_the_last_one():
    forest = Forest(2, 32, 40, head_dim_innermost=True)
    table = forest.root(40)
    shape = AttentionShape(4, 2, 32, 4)
    device_plan = DevicePlan(shape, H100, DEVICE)
    q = torch.randn(3, 4, 32)
    outs = []
    for masks in ([1, 2, 4], None, [1, 2, 4]):
        plan = forest.plan([table], [3], None if masks is None else np.array(masks, np.uint64))
        device_plan.make(plan)
        outs.append(branch_attention(q, forest.k, forest.v, device_plan, 0.2))
        expected = REFERENCE.branch_attention(q, forest.k, forest.v, plan, 0.2)
        torch.testing.assert_close(outs[-1], expected)
    assert not torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("prefix", [1, 15, 16, 17, 63, 64, 65])
def test_prefixes_around_a_block(prefix):
    forest = Forest(2, 64, 60, head_dim_innermost=True, poisoned=True)
    root = forest.root(prefix)
    kids = [forest.grow(root.fork(), 1) for _ in range(17)]
    check(forest, forest.plan(kids, [1] * 17), 4)


def test_moved_views():
    forest = Forest(2, 64, 60, head_dim_innermost=True, poisoned=True)
    one, other = forest.root(40), forest.root(50)
    joined = [one.fork(), one.fork()]
    for table, offset in zip(joined, (35, -3), strict=True):
        table.append_view(other, 5, 45, offset)
        forest.grow(table, 3, 80)
    plan = forest.plan([*joined, one, other], [1, 3, 1, 2])
    assert check(forest, plan, 6).numbers.has_rotations


def test_a_step_that_only_grew_reads_the_new_keys():
    forest = Forest(2, 32, 200, head_dim_innermost=True)
    root = forest.root(33)
    tables = [forest.grow(root.fork(), n) for n in (1, 15, 30)]
    device_plan = DevicePlan(AttentionShape(4, 2, 32, 4), H100, DEVICE)
    kept = []
    for _ in range(20):
        plan = forest.plan(tables, [1] * 3)
        device_plan.make(plan)
        kept.append(device_plan.was_kept)
        q = torch.randn(3, 4, 32)
        out = branch_attention(q, forest.k, forest.v, device_plan, 0.2)
        torch.testing.assert_close(
            out, REFERENCE.branch_attention(q, forest.k, forest.v, plan, 0.2)
        )
        tables = [forest.grow(t, 1) for t in tables]
    assert kept == [False] + [True] * 19


@pytest.mark.parametrize("num_states", [1, 2, 17, 40])
@pytest.mark.parametrize("head_dim", [64, 96])
def test_merge_states(num_states, head_dim):
    outs = torch.randn(num_states, 5, 3, head_dim)
    lses = torch.randn(num_states, 5, 3) * 10
    lses[::2, 1] = -torch.inf  # empty sets have no weight,
    outs[::2, 1] = 0
    lses[:, 2, 1] = -torch.inf  # and all of them together are empty
    outs[:, 2, 1] = 0
    out, lse = merge_states(outs.to(DEVICE), lses.to(DEVICE))
    expected = REFERENCE.merge_states(outs.double(), lses.double())
    assert_as_accurate_as_torch(out, expected[0], REFERENCE.merge_states(outs, lses)[0])
    assert_as_accurate_as_torch(lse, expected[1], REFERENCE.merge_states(outs, lses)[1])
    if num_states > 1:
        with pytest.raises(ValueError, match="strides"):
            merge_states(outs, lses.transpose(1, 2).contiguous().transpose(1, 2))


def refused(forest, match: str, **changes) -> None:
    table = forest.root(20)
    device_plan = DevicePlan(AttentionShape(4, 2, 32, 4), H100, torch.device("cpu"))
    device_plan.make(forest.plan([table], [2]))
    args = {"q": torch.randn(2, 4, 32), "k_cache": forest.k, "v_cache": forest.v, **changes}
    with pytest.raises(ValueError, match=match):
        branch_attention(plan=device_plan, softmax_scale=1.0, **args)


def test_what_does_not_fit_is_refused():
    forest = Forest(2, 32, 60, head_dim_innermost=True)
    refused(forest, r"\(2, 4, 32\), this is \(3, 4, 32\)", q=torch.randn(3, 4, 32))
    refused(forest, "strides", q=torch.randn(2, 32, 4).transpose(1, 2))
    refused(forest, "float64", q=torch.randn(2, 4, 32).double())
    refused(forest, "k_cache is torch.float16", k_cache=forest.k.half())
    refused(forest, "k_cache must be", k_cache=forest.k.contiguous())
    refused(forest, "v_cache must be", v_cache=forest.v[:, :1])
    refused(forest, "fp8", k_scale=torch.ones(2))
    refused(forest, "lse must be", lse=torch.empty(4, 2).T)
    refused(forest, "out must be", out=torch.empty(2, 4, 32).half())


def test_lse_is_natural_and_an_unused_cache_is_not_touched():
    """One key: its weight is 1, and lse is its score."""
    forest = Forest(1, 32, 4, head_dim_innermost=True, poisoned=True)
    table = forest.root(1)
    device_plan = DevicePlan(AttentionShape(1, 1, 32, 4), H100, DEVICE)
    device_plan.make(forest.plan([table], [1]))
    q, lse = torch.randn(1, 1, 32, device=DEVICE), torch.empty(1, 1, device=DEVICE)
    out = branch_attention(q, forest.k.to(DEVICE), forest.v.to(DEVICE), device_plan, 0.3, lse=lse)
    block = int(table.entries()[0, 0])
    torch.testing.assert_close(out[0, 0].cpu(), forest.v[block, 0, 0])
    score = 0.3 * (q[0, 0].cpu() @ forest.k[block, 0, :, 0])
    torch.testing.assert_close(lse[0, 0].cpu(), score)


def test_tables_die_after_their_plan():
    """The plan keeps what it looks at."""
    forest = Forest(2, 32, 60, head_dim_innermost=True)
    device_plan = DevicePlan(AttentionShape(4, 2, 32, 4), H100, torch.device("cpu"))
    device_plan.make(forest.plan([forest.root(20)], [1]))
    table = _C.BlockTable(forest.pool)
    forest.grow(table, 21)
    device_plan.make(forest.plan([table], [1]))
    assert not device_plan.was_kept
