"""What a row of logits x says of its distribution p = softmax(x), in one pass:

    lse = log sum exp(x),  entropy = lse - sum p x,  mean = sum x / vocab_size

With m the largest logit so far, l = sum exp(x - m) and t = sum (x - m) exp(x - m):

    lse = m + log l,  entropy = log l - t / l

which loses less than the difference of two large numbers. Where m grows by s, t becomes
exp(-s) (t - s l) and l becomes exp(-s) l. Each logit is read once, at two operations a byte. A
program owns a row; l, t and the sum of x are kept in every lane of its BLOCK and added up at the
end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.rows import check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op

LOG2_E = tl.constexpr(1.4426950408889634)

MAX_BLOCK = 8192
"""32 KiB of fp32 under way, which keeps a multiprocessor's share of the memory busy."""


@triton.jit
def logit_stats_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    out_ptr,  # [3, num_rows] fp32: lse, entropy, mean
    vocab_size,
    stride_row,
    BLOCK: tl.constexpr,
):
    """Grid: (num_rows,)."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride_row
    n = tl.arange(0, BLOCK)
    m_i = -float("inf")
    l_i = tl.zeros([BLOCK], tl.float32)
    t_i = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        live = n < vocab_size - start
        x = tl.load(logits_ptr + start + n, mask=live, other=-float("inf")).to(tl.float32)
        total += tl.where(live, x, 0.0)
        m_new = tl.maximum(m_i, tl.max(x, 0))
        m_safe = tl.where(m_new == -float("inf"), 0.0, m_new)
        e = tl.exp2((x - m_safe) * LOG2_E)
        alpha = tl.exp2((m_i - m_safe) * LOG2_E)
        shift = tl.where(m_i == -float("inf"), 0.0, m_i - m_safe)
        # A logit of -inf adds nothing, and not 0 * inf.
        t_i = (t_i + shift * l_i) * alpha + tl.where(e > 0, (x - m_safe) * e, 0.0)
        l_i = l_i * alpha + e
        m_i = m_new
    weight = tl.sum(l_i, 0)
    log_weight = tl.log(weight)
    m_safe = tl.where(m_i == -float("inf"), 0.0, m_i)
    num_rows = tl.num_programs(0)
    tl.store(out_ptr + row, m_safe + log_weight)
    tl.store(out_ptr + num_rows + row, log_weight - tl.sum(t_i, 0) / weight)
    tl.store(out_ptr + 2 * num_rows + row, tl.sum(total, 0) / vocab_size)


def logit_stats(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.ReferenceOps.logit_stats`. (lse, entropy, mean): [num_rows] fp32 each.

    A row with a NaN has lse = NaN.

    Args:
        logits: [num_rows, vocab_size] fp32, fp16 or bf16, contiguous in the last dimension.

    Raises:
        ValueError: a shape, stride or dtype does not fit.
    """
    check_rows("logits", logits, *logits.shape[-1:])
    out = torch.empty(3, len(logits), device=logits.device)
    _launch(logits, out)
    lse, entropy, mean = out
    return lse, entropy, mean


@torch_op("logit_stats(Tensor logits, Tensor(a!) out) -> ()")
def _launch(logits: Tensor, out: Tensor) -> None:
    num_rows, vocab_size = logits.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(vocab_size))
    logit_stats_kernel[(num_rows,)](
        logits, out, vocab_size, logits.stride(0), BLOCK=block, num_warps=num_warps(block)
    )
