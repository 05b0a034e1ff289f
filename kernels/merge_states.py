"""Attention states of disjoint sets of keys, merged:

    lse = log sum_i exp(lse_i),  out = sum_i exp(lse_i - lse) out_i

in fp32. It reads each state once, head_dim + 1 floats, and writes one. A program merges the states
of one row and one head, BLOCK_S at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.torch_op import torch_op

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
BLOCK_S = tl.constexpr(16)


@triton.jit
def merge_kernel(
    partial_out_ptr,  # [num_partials, num_heads, head_dim] fp32
    partial_lse_ptr,  # [num_partials, num_heads] fp32
    indptr_ptr,  # [num_rows + 1] int32 into runs
    runs_ptr,  # [num_runs, 3] int32: first partial, stride, count
    out_ptr,  # [num_rows, num_heads, head_dim]
    lse_ptr,  # [num_rows, num_heads] fp32
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WRITE_LSE: tl.constexpr,
):
    """Grid: (num_rows, num_heads). A row without runs is left as it is."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    begin = tl.load(indptr_ptr + row)
    end = tl.load(indptr_ptr + row + 1)
    if begin == end:
        return
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    m_i = -float("inf")
    l_i = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for run in range(begin, end):
        first = tl.load(runs_ptr + run * 3)
        stride = tl.load(runs_ptr + run * 3 + 1)
        count = tl.load(runs_ptr + run * 3 + 2)
        for start in range(0, count, BLOCK_S):
            live = start + s < count
            place = (first + (start + s) * stride).to(tl.int64) * num_heads + head
            lse = tl.load(partial_lse_ptr + place, mask=live, other=-float("inf")) * LOG2_E
            mask = live[:, None] & (d[None, :] < HEAD_DIM)
            o = tl.load(
                partial_out_ptr + place[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0
            )
            m_new = tl.maximum(m_i, tl.max(lse, 0))
            m_safe = tl.where(m_new == -float("inf"), 0.0, m_new)
            weight = tl.exp2(lse - m_safe)
            alpha = tl.exp2(m_i - m_safe)
            l_i = l_i * alpha + tl.sum(weight, 0)
            acc = acc * alpha + tl.sum(weight[:, None] * o, 0)
            m_i = m_new
    empty = l_i == 0
    total = tl.where(empty, 1.0, l_i)
    place = row.to(tl.int64) * num_heads + head
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place * HEAD_DIM + d, out, mask=d < HEAD_DIM)
    if WRITE_LSE:
        tl.store(lse_ptr + place, tl.where(empty, -float("inf"), (m_i + tl.log2(total)) * LN_2))


def merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.ReferenceOps.merge_states`.

    Args:
        outs: [num_states, num_rows, num_heads, head_dim] fp32, contiguous.
        lses: [num_states, num_rows, num_heads] fp32, contiguous.
    """
    num_states, num_rows, num_heads, head_dim = outs.shape
    for name, x, shape in (("outs", outs, outs.shape), ("lses", lses, outs.shape[:3])):
        if x.shape != shape or x.dtype != torch.float32 or not x.is_contiguous():
            raise ValueError(
                f"{name} must be fp32 {tuple(shape)} and contiguous, got {x.dtype}"
                f" {tuple(x.shape)} with strides {x.stride()}"
            )
    rows = torch.arange(num_rows + 1, dtype=torch.int32, device=outs.device)
    runs = torch.stack(
        [rows[:-1], torch.full_like(rows[:-1], num_rows), torch.full_like(rows[:-1], num_states)], 1
    ).contiguous()
    out = torch.empty(num_rows, num_heads, head_dim, device=outs.device)
    lse = torch.empty(num_rows, num_heads, device=outs.device)
    _launch(outs, lses, rows, runs, out, lse)
    return out, lse


@torch_op(
    "merge_states(Tensor outs, Tensor lses, Tensor indptr, Tensor runs, Tensor(a!) out,"
    " Tensor(b!) lse) -> ()"
)
def _launch(
    outs: Tensor, lses: Tensor, indptr: Tensor, runs: Tensor, out: Tensor, lse: Tensor
) -> None:
    num_rows, num_heads, head_dim = out.shape
    merge_kernel[(num_rows, num_heads)](
        outs,
        lses,
        indptr,
        runs,
        out,
        lse,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        WRITE_LSE=True,
        num_warps=1,
    )
