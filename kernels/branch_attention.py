"""Attention of query rows over a forest of shared prefixes, in at most two launches a layer.

    s_t = softmax_scale * q . k_t,  p_t = exp(s_t - max s),  out = sum_t p_t v_t / sum_t p_t
    lse = log sum_t exp(s_t)

over the keys t that the row sees. A `WorkPlan` cuts the forest into items: some query rows against
some pages that all of them see. A program holds the query heads of one KV head of an item's rows in
one tile of BLOCK_M and reads each page once for all of them: 2 * BLOCK_SIZE * head_dim keys and
values for 4 * BLOCK_M * BLOCK_SIZE * head_dim operations. An item is wide (WIDE_M rows) or narrow
(NARROW_M), and both shapes are bodies of one kernel, so depth and raggedness cost no launches.
Where rows are few a whole subtree is one item: its pages stand in one list, each for its own rows.

A row that one item serves is written to the output at once. Others leave partial results in fp32,
out_i and lse_i of their item's keys alone, and `merge_kernel` combines them:

    lse = log sum_i exp(lse_i),  out = sum_i exp(lse_i - lse) out_i

An empty set has lse_i = -inf and no weight. Pages in front of `full_end` are full and seen by every
row; only those behind are masked: a last page, another branch's page, rows of one chunk that see
different ends, the bit masks of a draft.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.device_plan import DevicePlan, PlanNumbers, PlanTensors
from parallel_decode.kernels.e4m3 import E4M3_UNIT, e4m3_to_float
from parallel_decode.kernels.merge_states import merge_kernel
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.torch_op import torch_op

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _read_pages(
    q,
    m_i,
    l_i,
    acc,
    k_ptr,
    v_ptr,
    page_ptr,
    stride_page,
    begin,
    end,
    kv_head,
    scale,
    softcap,
    row,
    visible,
    draft_begin,
    draft_mask,
    position,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DRAFTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The softmax state (m_i, l_i, acc) of a tile after pages [begin, end)."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    lane = n % PAGE
    for page in range(begin, end, BLOCK_N // PAGE):
        index = page + n // PAGE
        if MASKED:
            block = tl.load(page_ptr + index, mask=index < end, other=0)
            key = tl.load(page_ptr + stride_page + index, mask=index < end, other=0) + lane
            span = tl.load(page_ptr + stride_page * 2 + index, mask=index < end, other=0)
            first_row = tl.load(page_ptr + stride_page * 4 + index, mask=index < end, other=0)
            end_row = tl.load(page_ptr + stride_page * 5 + index, mask=index < end, other=0)
            stored = (lane >= (span & 255)) & (lane < (span >> 8))
            seen = stored[None, :] & (key[None, :] < visible[:, None])
            seen &= (row[:, None] >= first_row[None, :]) & (row[:, None] < end_row[None, :])
            if DRAFTS:
                bit = key[None, :] - draft_begin[:, None]
                shifted = draft_mask[:, None] >> tl.maximum(bit, 0).to(tl.int64)
                seen &= (bit < 0) | ((shifted & 1) != 0)
        else:
            block = tl.load(page_ptr + index)
            stored = n >= 0
            seen = stored[None, :]
        offset = block.to(tl.int64) * (NUM_KV_HEADS * PAGE * HEAD_DIM) + lane * HEAD_DIM
        offset += kv_head * (PAGE * HEAD_DIM)
        k_mask = d[:, None] < HEAD_DIM
        v_mask = d[None, :] < HEAD_DIM
        if MASKED:
            # What lies beyond a page's tokens may be anything, NaN too.
            k_mask &= stored[None, :]
            v_mask &= stored[:, None]
        if MASKED or BLOCK_D != HEAD_DIM:
            k = tl.load(k_ptr + offset[None, :] + d[:, None], mask=k_mask, other=0)
            v = tl.load(v_ptr + offset[:, None] + d[None, :], mask=v_mask, other=0)
        else:
            k = tl.load(k_ptr + offset[None, :] + d[:, None])
            v = tl.load(v_ptr + offset[:, None] + d[None, :])
        if k.dtype == tl.uint8:
            k = e4m3_to_float(k, q.dtype)
            v = e4m3_to_float(v, q.dtype)
        s = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1)
            s = (softcap - 2 * softcap / (tl.exp2(s * (2 * LOG2_E / softcap)) + 1)) * LOG2_E
        if WINDOW > 0:
            at = tl.load(page_ptr + stride_page * 3 + index, mask=index < end, other=0) + lane
            seen = seen & (position[:, None] - at[None, :] < WINDOW)
        if MASKED or WINDOW > 0:
            s = tl.where(seen, s, -float("inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_safe = m_new
        if MASKED or WINDOW > 0:
            m_safe = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m_i - m_safe)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
        m_i = m_new
    return m_i, l_i, acc


@triton.jit
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    page_ptr,
    stride_page,
    num_visible_ptr,
    position_ptr,
    draft_begin_ptr,
    draft_mask_ptr,
    rotation_cos_ptr,
    rotation_sin_ptr,
    row_begin,
    num_rows,
    page_begin,
    full_end,
    page_end,
    partial_begin,
    rotation,
    kv_head,
    k_scale,
    v_scale,
    softmax_scale,
    softcap,
    stride_q_row,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DRAFTS: tl.constexpr,
    ROTATIONS: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """One item under a tile of BLOCK_M: row m is query head m % GROUP of query row m // GROUP."""
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    live = m < num_rows * GROUP
    row = row_begin + m // GROUP
    head = kv_head * GROUP + m % GROUP
    q_offset = row.to(tl.int64) * stride_q_row + head * HEAD_DIM
    q_mask = live[:, None] & (d[None, :] < HEAD_DIM)
    q = tl.load(q_ptr + q_offset[:, None] + d[None, :], mask=q_mask, other=0)
    if ROTATIONS:
        # Keys read `offset` positions further on: q turned back by as much, (a, b) ->
        # (a cos + b sin, b cos - a sin).
        HALF: tl.constexpr = HEAD_DIM // 2
        pair = tl.where(d < HALF, d + HALF, d - HALF)
        other = tl.load(q_ptr + q_offset[:, None] + pair[None, :], mask=q_mask, other=0)
        angle = rotation * HALF + d % HALF
        cos = tl.load(rotation_cos_ptr + angle, mask=d < HEAD_DIM, other=0)
        sin = tl.load(rotation_sin_ptr + angle, mask=d < HEAD_DIM, other=0)
        sin = tl.where(d < HALF, sin, -sin)
        turned = q.to(tl.float32) * cos[None, :] + other.to(tl.float32) * sin[None, :]
        q = tl.where(rotation == 0, q, turned.to(q.dtype))

    visible = tl.load(num_visible_ptr + row, mask=live, other=0)
    draft_begin = visible
    draft_mask = visible.to(tl.int64)
    position = visible
    if DRAFTS:
        draft_begin = tl.load(draft_begin_ptr + row, mask=live, other=0)
        draft_mask = tl.load(draft_mask_ptr + row, mask=live, other=0)
    if WINDOW > 0:
        position = tl.load(position_ptr + row, mask=live, other=0)

    scale = softmax_scale * k_scale
    if not SOFTCAP:
        scale *= LOG2_E
    m_i = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    PAGES: tl.constexpr = BLOCK_N // PAGE
    unmasked_end = page_begin + (full_end - page_begin) // PAGES * PAGES
    for masked in tl.static_range(2):
        m_i, l_i, acc = _read_pages(
            q,
            m_i,
            l_i,
            acc,
            k_ptr,
            v_ptr,
            page_ptr,
            stride_page,
            unmasked_end if masked else page_begin,
            page_end if masked else unmasked_end,
            kv_head,
            scale,
            softcap,
            row,
            visible,
            draft_begin,
            draft_mask,
            position,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
            PAGE,
            WINDOW,
            SOFTCAP,
            DRAFTS,
            masked == 1,
        )
    empty = l_i == 0
    out = acc * (v_scale / tl.where(empty, 1.0, l_i))[:, None]
    lse = tl.where(empty, -float("inf"), m_i * LN_2 + tl.log(tl.where(empty, 1.0, l_i)))
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    if partial_begin < 0:
        place = row.to(tl.int64) * NUM_HEADS + head
        tl.store(
            out_ptr + place[:, None] * HEAD_DIM + d[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=q_mask,
        )
        if WRITE_LSE:
            tl.store(lse_ptr + place, lse, mask=live)
    else:
        place = (partial_begin + m // GROUP).to(tl.int64) * NUM_HEADS + head
        tl.store(partial_out_ptr + place[:, None] * HEAD_DIM + d[None, :], out, mask=q_mask)
        tl.store(partial_lse_ptr + place, lse, mask=live)


@triton.jit
def branch_attention_kernel(
    q_ptr,  # [num_rows, num_heads, head_dim]
    k_ptr,  # [num_blocks, num_kv_heads, PAGE, head_dim]
    v_ptr,
    k_scale_ptr,  # [num_kv_heads] fp32, of fp8 caches
    v_scale_ptr,
    out_ptr,  # [num_rows, num_heads, head_dim]
    lse_ptr,  # [num_rows, num_heads] fp32
    partial_out_ptr,  # [num_partials, num_heads, head_dim] fp32
    partial_lse_ptr,  # [num_partials, num_heads] fp32
    item_ptr,  # [num_items, 8] int32, WorkItem of csrc/work_plan.h
    page_ptr,  # [6, max_pages] int32: the members of WorkPage
    stride_page,
    num_visible_ptr,
    position_ptr,
    draft_begin_ptr,
    draft_mask_ptr,
    rotation_cos_ptr,
    rotation_sin_ptr,
    softmax_scale,
    softcap,
    stride_q_row,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NARROW_M: tl.constexpr,
    WIDE_M: tl.constexpr,
    NARROW_N: tl.constexpr,
    WIDE_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DRAFTS: tl.constexpr,
    ROTATIONS: tl.constexpr,
    FP8: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """Grid: (num_kv_heads, num_items)."""
    kv_head = tl.program_id(0)
    item_ptr += tl.program_id(1) * 8
    row_begin = tl.load(item_ptr)
    num_rows = tl.load(item_ptr + 1)
    page_begin = tl.load(item_ptr + 2)
    full_end = tl.load(item_ptr + 3)
    page_end = tl.load(item_ptr + 4)
    partial_begin = tl.load(item_ptr + 5)
    rotation = tl.load(item_ptr + 6)
    is_wide = tl.load(item_ptr + 7)
    if num_rows == 0:
        return
    k_scale = 1.0
    v_scale = 1.0
    if FP8:
        k_scale = tl.load(k_scale_ptr + kv_head) * E4M3_UNIT
        v_scale = tl.load(v_scale_ptr + kv_head) * E4M3_UNIT
    for wide in tl.static_range(2):
        if is_wide == wide:
            _attend(
                q_ptr,
                k_ptr,
                v_ptr,
                out_ptr,
                lse_ptr,
                partial_out_ptr,
                partial_lse_ptr,
                page_ptr,
                stride_page,
                num_visible_ptr,
                position_ptr,
                draft_begin_ptr,
                draft_mask_ptr,
                rotation_cos_ptr,
                rotation_sin_ptr,
                row_begin,
                num_rows,
                page_begin,
                full_end,
                page_end,
                partial_begin,
                rotation,
                kv_head,
                k_scale,
                v_scale,
                softmax_scale,
                softcap,
                stride_q_row,
                NUM_KV_HEADS,
                GROUP,
                HEAD_DIM,
                BLOCK_D,
                WIDE_M if wide else NARROW_M,
                WIDE_N if wide else NARROW_N,
                PAGE,
                WINDOW,
                SOFTCAP,
                DRAFTS,
                ROTATIONS,
                WRITE_LSE,
            )


@torch_op(
    "branch_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale,"
    " Tensor(a!) out, Tensor(b!) lse, Tensor(c!)[] tensors, int[] numbers, float softmax_scale,"
    " int sliding_window, float softcap) -> ()"
)
def _launch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: list[Tensor],
    numbers: list[int],
    softmax_scale: float,
    sliding_window: int,
    softcap: float,
) -> None:
    plan, number = PlanTensors(*tensors), PlanNumbers(*numbers)
    # With all that a step may ask for, its registers hold half as many keys.
    shrink = 2 if number.has_drafts and number.has_rotations and softcap > 0 else 1
    num_rows, num_heads, head_dim = q.shape
    fp8 = k_cache.dtype == torch.float8_e4m3fn
    if fp8:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    branch_attention_kernel[(number.num_kv_heads, number.num_items)](
        q,
        k_cache,
        v_cache,
        k_scale,
        v_scale,
        out,
        lse,
        plan.partial_out,
        plan.partial_lse,
        plan.items,
        plan.pages,
        plan.pages.stride(0),
        plan.num_visible,
        plan.positions,
        plan.draft_begin,
        plan.draft_mask,
        plan.rotation_cos,
        plan.rotation_sin,
        softmax_scale,
        softcap,
        q.stride(0),
        NUM_KV_HEADS=number.num_kv_heads,
        GROUP=number.group,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        NARROW_M=number.narrow_m,
        WIDE_M=number.wide_m,
        NARROW_N=max(BLOCK_SIZE, number.narrow_n // shrink),
        WIDE_N=max(BLOCK_SIZE, number.wide_n // shrink),
        PAGE=BLOCK_SIZE,
        WINDOW=sliding_window,
        SOFTCAP=softcap > 0,
        DRAFTS=bool(number.has_drafts),
        ROTATIONS=bool(number.has_rotations),
        FP8=fp8,
        WRITE_LSE=lse.numel() > 0,
        num_warps=number.num_warps,
        num_stages=number.num_stages,
    )
    if number.num_launches == 2:
        merge_kernel[(num_rows, num_heads)](
            plan.partial_out,
            plan.partial_lse,
            plan.merge_indptr,
            plan.merge_runs,
            out,
            lse,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            WRITE_LSE=lse.numel() > 0,
            num_warps=1,
        )


def branch_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: DevicePlan,
    softmax_scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """See `reference.ReferenceOps.branch_attention`.

    Args:
        q: [num_rows, num_heads, head_dim] fp32, fp16 or bf16; rows may be strided.
        k_cache: [num_blocks, num_kv_heads, head_dim, BLOCK_SIZE], head_dim contiguous, in the dtype
            of q or float8_e4m3fn.
        v_cache: [num_blocks, num_kv_heads, BLOCK_SIZE, head_dim], contiguous.
        k_scale, v_scale: [num_kv_heads] fp32, what the numbers of fp8 caches are multiplied by.
        out: as q and contiguous; made where it is None.
        lse: [num_rows, num_heads] fp32 contiguous, is filled where given.

    Raises:
        ValueError: a shape, stride or dtype does not fit the others or the plan.
    """
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    _check(q, k_cache, v_cache, plan, out, lse)
    scales = (k_scale, v_scale)
    if k_cache.dtype != torch.float8_e4m3fn and scales != (None, None):
        raise ValueError(f"scales belong to fp8 caches, these are {k_cache.dtype}")
    for scale in scales:
        if scale is not None and (scale.shape != plan.ones.shape or scale.dtype != torch.float32):
            raise ValueError(
                f"scales must be fp32 {tuple(plan.ones.shape)}, got {scale.dtype}"
                f" {tuple(scale.shape)}"
            )
    _launch(
        q,
        k_cache,
        v_cache,
        *(plan.ones if scale is None else scale for scale in scales),
        out,
        plan.nothing if lse is None else lse,
        list(plan.tensors),
        list(plan.numbers),
        softmax_scale,
        sliding_window or 0,
        0.0 if softcap is None else softcap,
    )
    return out


def _check(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: DevicePlan, out: Tensor, lse: Tensor | None
) -> None:
    num_kv_heads, heads, head_dim = (
        plan.shape.num_kv_heads,
        plan.shape.num_heads,
        plan.shape.head_dim,
    )
    num_rows = plan.num_rows
    if tuple(q.shape) != (num_rows, heads, head_dim):
        raise ValueError(
            f"the plan is for q of {(num_rows, heads, head_dim)}, this is {tuple(q.shape)}"
        )
    if q.stride(2) != 1 or q.stride(1) != head_dim:
        raise ValueError(f"the heads of q must be contiguous, its strides are {q.stride()}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16, not {q.dtype}")
    block = num_kv_heads * head_dim * BLOCK_SIZE
    for name, cache, shape, strides in (
        ("k_cache", k_cache, (head_dim, BLOCK_SIZE), (1, head_dim)),
        ("v_cache", v_cache, (BLOCK_SIZE, head_dim), (head_dim, 1)),
    ):
        if cache.dtype not in (q.dtype, torch.float8_e4m3fn) or cache.dtype != k_cache.dtype:
            raise ValueError(f"{name} is {cache.dtype}, q is {q.dtype}, k_cache {k_cache.dtype}")
        expected = (block, head_dim * BLOCK_SIZE, *strides)
        if tuple(cache.shape[1:]) != (num_kv_heads, *shape) or cache.stride() != expected:
            raise ValueError(
                f"{name} must be [num_blocks, {num_kv_heads}, {shape[0]}, {shape[1]}] with"
                f" strides {expected}, got {tuple(cache.shape)} with strides {cache.stride()}"
            )
    if out.shape != q.shape or out.dtype != q.dtype or not out.is_contiguous():
        raise ValueError(
            f"out must be {q.dtype} {tuple(q.shape)} and contiguous, got {out.dtype}"
            f" {tuple(out.shape)} with strides {out.stride()}"
        )
    if lse is not None and (
        tuple(lse.shape) != (num_rows, heads)
        or lse.dtype != torch.float32
        or not lse.is_contiguous()
    ):
        raise ValueError(
            f"lse must be fp32 {(num_rows, heads)} and contiguous, got {lse.dtype}"
            f" {tuple(lse.shape)} with strides {lse.stride()}"
        )
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache), ("plan", plan.tensors.items)):
        if tensor.device != q.device:
            raise ValueError(f"q is on {q.device}, {name} on {tensor.device}")
