"""Which draft tokens the target accepts, one program a branch. `acceptance` is the definition.

A program walks the nodes of its tree once, in their order, with the p' = w / m of `residual` behind
the current one. A child x, drawn from q' = q / z, is accepted if

    u q(x) m < w(x) z

and one that is accepted at once costs one number of p and one of q. A rejection reads both rows for
the new m; without replacement the next sibling reads q for its z; the next token's rows are read
for m and up to the place where the sum of w exceeds u m. All of it is fp64: only what ties but for
such rounding can be decided otherwise than by the definition.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels import acceptance
from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.draft_tree import check_drafts, depth_limit
from parallel_decode.kernels.philox import philox_uniform
from parallel_decode.kernels.residual import draw, remainder, total_weight, weight, without
from parallel_decode.kernels.torch_op import torch_op
from parallel_decode.kernels.verify_greedy import empty_acceptance, store_acceptance

NEXT_STREAM = tl.constexpr(acceptance.NEXT_STREAM)
ACCEPT_STREAM = tl.constexpr(acceptance.ACCEPT_STREAM)

MAX_BLOCK = 4096
"""Tokens of one step: 32 KiB of p and q are under way."""
NUM_WARPS = 16
"""8 tokens a thread, whose sums in fp64 fit the registers well."""


@triton.jit
def verify_kernel(
    p_ptr,  # [num_branches + num_nodes, vocab_size] fp32
    q_ptr,  # [num_nodes, vocab_size] fp32; None: all nodes are deterministic
    token_ptr,  # [num_nodes] int64
    parent_ptr,  # [num_nodes] int32; None: chains
    deterministic_ptr,  # [num_nodes] uint8; None: all nodes are, or none is where there is a q
    cu_nodes_ptr,  # [num_branches + 1] int32
    key_ptr,  # [num_branches] int64
    position_ptr,  # [num_branches] int64
    num_accepted_ptr,  # [num_branches] int32
    path_ptr,  # [num_branches, max_depth] int32
    next_token_ptr,  # [num_branches] int64
    vocab_size,
    stride_p_row,
    stride_q_row,
    max_depth,
    DETERMINISTIC: tl.constexpr,  # some nodes are
    REPLACEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (num_branches,)."""
    branch = tl.program_id(0)
    begin = tl.load(cu_nodes_ptr + branch)
    num_nodes = tl.load(cu_nodes_ptr + branch + 1) - begin
    key = tl.load(key_ptr + branch)
    position = tl.load(position_ptr + branch)
    p_ptr += (begin + branch).to(tl.int64) * stride_p_row
    token_ptr += begin
    if q_ptr is not None:
        q_ptr += begin.to(tl.int64) * stride_q_row
    if parent_ptr is not None:
        parent_ptr += begin
    if deterministic_ptr is not None:
        deterministic_ptr += begin
    nodes = (token_ptr, parent_ptr, deterministic_ptr)

    one = tl.full([], 1.0, tl.float64)
    current = -1
    depth = 0
    # The current node's children: how many were seen, the first, and behind the last rejected one.
    rank = 0
    first = 0
    end = 0
    # Its w and m, which of an untouched p is 1 until it is drawn from.
    p_row = p_ptr
    q_row = tl.full([], 0, tl.int64)
    c = one * 0
    m = one
    node = 0
    while (node < num_nodes) & (depth < max_depth):
        parent = node - 1
        if parent_ptr is not None:
            parent = tl.load(parent_ptr + node)
        if parent == current:
            first = tl.where(rank == 0, node, first)
            x = tl.load(token_ptr + node)
            is_known = (x >= 0) & (x < vocab_size)
            w_x = weight(
                x, is_known, p_row, one, q_ptr, q_row, c, nodes, current, first, end, DETERMINISTIC
            )
            q_x = one
            z = one
            next_c = c
            next_q_row = q_row
            if q_ptr is not None:
                is_drawn = one > 0
                if deterministic_ptr is not None:
                    is_drawn = tl.load(deterministic_ptr + node) == 0
                if is_drawn:
                    next_q_row = tl.cast(node, tl.int64) * stride_q_row
                    q_x = tl.load(q_ptr + next_q_row + x, mask=is_known, other=0.0).to(tl.float64)
                    if not REPLACEMENT:
                        q_x = without(q_x, x, nodes, current, first, end, False)
                        if (end > first) & (q_x != 0):
                            z = remainder(
                                q_ptr + next_q_row, vocab_size, nodes, current, first, end, BLOCK
                            )
                    next_c = c + m / z
            u = philox_uniform(key, position + depth, rank + ACCEPT_STREAM)
            rank += 1
            if is_known & (q_x != 0):
                if u * q_x * m < w_x * z:
                    current = node
                    depth += 1
                    rank = 0
                    end = 0
                    p_row = p_ptr + tl.cast(1 + node, tl.int64) * stride_p_row
                    c = one * 0
                    m = one
                else:
                    rest = total_weight(
                        vocab_size,
                        p_row,
                        one,
                        q_ptr,
                        next_q_row,
                        next_c,
                        nodes,
                        current,
                        first,
                        node + 1,
                        DETERMINISTIC,
                        BLOCK,
                    )
                    if rest != 0:
                        end = node + 1
                        q_row = next_q_row
                        c = next_c
                        m = rest
                    # Nothing left, or NaN: the walk is over.
                    node = tl.where(rest > 0, node, num_nodes)
        node += 1

    if end == 0:
        m = total_weight(
            vocab_size,
            p_row,
            one,
            q_ptr,
            q_row,
            c,
            nodes,
            current,
            first,
            end,
            DETERMINISTIC,
            BLOCK,
        )
    token = -1
    if (m > 0) & (m < float("inf")):
        target = philox_uniform(key, position + depth, NEXT_STREAM) * m
        token = draw(
            target,
            vocab_size,
            p_row,
            one,
            q_ptr,
            q_row,
            c,
            nodes,
            current,
            first,
            end,
            DETERMINISTIC,
            BLOCK,
        )
    store_acceptance(
        num_accepted_ptr,
        path_ptr,
        next_token_ptr,
        parent_ptr,
        branch,
        current,
        depth,
        token,
        max_depth,
    )


def verify_tree(
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    replacement: bool,
    deterministic: Tensor | None = None,
    max_depth: int | None = None,
) -> Acceptance:
    """See `acceptance.verify_tree`. With a max_depth nothing is read back from the device, and the
    trees themselves are not checked.

    Args:
        p, q: as there, fp32 and contiguous in the last dimension.
        parents: as there; None: chains.

    Raises:
        ValueError: a shape, a dtype, strides or a device do not fit.
    """
    columns = (p, q, draft_tokens, parents, cu_nodes, keys, positions)
    num_branches, num_nodes = check_drafts(*columns, deterministic)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    out = empty_acceptance(num_branches, limit, p.device)
    flags = None if q is None or deterministic is None else deterministic.view(torch.uint8)
    _launch(p, q, draft_tokens, parents, flags, cu_nodes, keys, positions, replacement, *out)
    return out


@torch_op(
    "verify_tree(Tensor p, Tensor? q, Tensor draft_tokens, Tensor? parents, Tensor? deterministic,"
    " Tensor cu_nodes, Tensor keys, Tensor positions, bool replacement, Tensor(a!) num_accepted,"
    " Tensor(b!) path, Tensor(c!) next_token) -> ()"
)
def _launch(
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    parents: Tensor | None,
    deterministic: Tensor | None,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    replacement: bool,
    num_accepted: Tensor,
    path: Tensor,
    next_token: Tensor,
) -> None:
    verify_kernel[(len(num_accepted),)](
        p,
        q,
        draft_tokens,
        parents,
        deterministic,
        cu_nodes,
        keys,
        positions,
        num_accepted,
        path,
        next_token,
        p.shape[1],
        p.stride(0),
        0 if q is None else q.stride(0),
        path.shape[1],
        DETERMINISTIC=q is None or deterministic is not None,
        REPLACEMENT=replacement,
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(p.shape[1])),
        num_warps=NUM_WARPS,
    )


def verify_chain(
    p: Tensor,
    q: Tensor | None,
    draft_tokens: Tensor,
    cu_nodes: Tensor,
    keys: Tensor,
    positions: Tensor,
    max_depth: int | None = None,
) -> Acceptance:
    """See `acceptance.verify_chain`, and `verify_tree` here."""
    return verify_tree(
        p, q, draft_tokens, None, cu_nodes, keys, positions, True, max_depth=max_depth
    )
