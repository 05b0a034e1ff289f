"""Typical acceptance, NOT LOSSLESS, one program a branch. `typical` is the definition.

A program goes over its nodes once, in their order, and keeps in memory how long each one's path is.
A row is read for its entropy where a child's p(x) <= epsilon, and twice more to draw from.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels import acceptance
from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.draft_tree import check_drafts, depth_limit
from parallel_decode.kernels.philox import philox_uniform
from parallel_decode.kernels.residual import draw, total_weight
from parallel_decode.kernels.torch_op import torch_op
from parallel_decode.kernels.typical import ALPHA, EPSILON
from parallel_decode.kernels.verify import MAX_BLOCK, NUM_WARPS
from parallel_decode.kernels.verify_greedy import empty_acceptance, store_acceptance

NEXT_STREAM = tl.constexpr(acceptance.NEXT_STREAM)


@triton.jit
def _entropy(p_row, vocab_size, BLOCK: tl.constexpr):
    """-sum p ln p"""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab_size, BLOCK):
        n = start + tl.arange(0, BLOCK)
        p = tl.load(p_row + n, mask=n < vocab_size, other=0.0).to(tl.float64)
        total -= p * tl.log(tl.where(p > 0, p, 1.0))  # a NaN stays one
    return tl.sum(total, 0)


@triton.jit
def verify_typical_kernel(
    p_ptr,  # [num_branches + num_nodes, vocab_size] fp32
    token_ptr,  # [num_nodes] int64
    parent_ptr,  # [num_nodes] int32; None: chains
    cu_nodes_ptr,  # [num_branches + 1] int32
    key_ptr,  # [num_branches] int64
    position_ptr,  # [num_branches] int64
    thresholds_ptr,  # [2] fp64: epsilon, alpha
    length_ptr,  # [num_nodes] int32: written and read here, -1 where a node is not accepted
    num_accepted_ptr,  # [num_branches] int32
    path_ptr,  # [num_branches, max_depth] int32
    next_token_ptr,  # [num_branches] int64
    vocab_size,
    stride_p_row,
    max_depth,
    BLOCK: tl.constexpr,
):
    """Grid: (num_branches,)."""
    branch = tl.program_id(0)
    begin = tl.load(cu_nodes_ptr + branch)
    num_nodes = tl.load(cu_nodes_ptr + branch + 1) - begin
    p_ptr += (begin + branch).to(tl.int64) * stride_p_row
    token_ptr += begin
    length_ptr += begin
    if parent_ptr is not None:
        parent_ptr += begin
    epsilon = tl.load(thresholds_ptr)
    alpha = tl.load(thresholds_ptr + 1)
    deepest = -1
    max_length = 0
    for node in range(num_nodes):
        parent = node - 1
        if parent_ptr is not None:
            parent = tl.load(parent_ptr + node)
        above = tl.load(length_ptr + parent, mask=parent >= 0, other=0)
        length = -1
        x = tl.load(token_ptr + node)
        if (above >= 0) & (above < max_depth) & (x >= 0) & (x < vocab_size):
            p_row = p_ptr + tl.cast(1 + parent, tl.int64) * stride_p_row
            p_x = tl.load(p_row + x).to(tl.float64)
            passes = p_x > epsilon
            if not passes:
                passes = p_x > alpha * tl.exp(-_entropy(p_row, vocab_size, BLOCK))
            length = tl.where(passes, above + 1, -1)
        if length > max_length:
            max_length = length
            deepest = node
        tl.store(length_ptr + node, length)
        # All threads read what one of them has written.
        tl.debug_barrier()

    one = tl.full([], 1.0, tl.float64)
    p_row = p_ptr + tl.cast(1 + deepest, tl.int64) * stride_p_row
    siblings = ((token_ptr, parent_ptr, None), deepest, 0, 0)
    total = total_weight(vocab_size, p_row, one, None, 0, one * 0, *siblings, False, BLOCK)
    token = -1
    if (total > 0) & (total < float("inf")):
        index = tl.load(position_ptr + branch) + max_length
        target = philox_uniform(tl.load(key_ptr + branch), index, NEXT_STREAM) * total
        token = draw(target, vocab_size, p_row, one, None, 0, one * 0, *siblings, False, BLOCK)
    store_acceptance(
        num_accepted_ptr,
        path_ptr,
        next_token_ptr,
        parent_ptr,
        branch,
        deepest,
        max_length,
        token,
        max_depth,
    )


def verify_typical(
    p: Tensor,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    epsilon: float = EPSILON,
    alpha: float = ALPHA,
    max_depth: int | None = None,
) -> Acceptance:
    """See `typical.verify_typical`, and `verify.verify_tree` of what is checked here."""
    columns = (p, None, draft_tokens, parents, cu_nodes, keys, positions)
    num_branches, num_nodes = check_drafts(*columns)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    out = empty_acceptance(num_branches, limit, p.device)
    thresholds = torch.tensor([epsilon, alpha], dtype=torch.float64, device=p.device)
    lengths = torch.empty(num_nodes, dtype=torch.int32, device=p.device)
    _launch(p, draft_tokens, parents, cu_nodes, keys, positions, thresholds, lengths, *out)
    return out


@torch_op(
    "verify_typical(Tensor p, Tensor draft_tokens, Tensor? parents, Tensor cu_nodes, Tensor keys,"
    " Tensor positions, Tensor thresholds, Tensor(a!) lengths, Tensor(b!) num_accepted,"
    " Tensor(c!) path, Tensor(d!) next_token) -> ()"
)
def _launch(
    p: Tensor,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    thresholds: Tensor,
    lengths: Tensor,
    num_accepted: Tensor,
    path: Tensor,
    next_token: Tensor,
) -> None:
    verify_typical_kernel[(len(num_accepted),)](
        p,
        draft_tokens,
        parents,
        cu_nodes,
        keys,
        positions,
        thresholds,
        lengths,
        num_accepted,
        path,
        next_token,
        p.shape[1],
        p.stride(0),
        path.shape[1],
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(p.shape[1])),
        num_warps=NUM_WARPS,
    )
