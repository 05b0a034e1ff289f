"""Traversal of drafts from their leaves, one program a branch. `traversal` is the definition.

A program keeps the node that it visits in scalars, and what it knows of the nodes above it on a
stack of vectors, one lane a depth: a child is entered with the weight

    a' = min(1, w(x) z / (q(x) m))

with a, w and m of its parent as in `residual` and x drawn from q' = q / z. Where all its children
have failed and u m >= sum_x w(x), it fails itself: its parent takes its q' from w, which reads both
rows, and goes on behind it. The rest is as in `verify`: fp64 throughout, and only what ties but for
rounding can be decided otherwise than by the definition.
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
from parallel_decode.kernels.verify import MAX_BLOCK, NUM_WARPS
from parallel_decode.kernels.verify_greedy import empty_acceptance, store_acceptance

NEXT_STREAM = tl.constexpr(acceptance.NEXT_STREAM)
TRAVERSAL_STREAM = tl.constexpr(acceptance.TRAVERSAL_STREAM)

VISITING = tl.constexpr(0)
ACCEPTED = tl.constexpr(1)
BROKEN = tl.constexpr(2)


@triton.jit
def _pushed(stack, level, depth, value):
    return tl.where(level == depth, value, stack)


@triton.jit
def _popped(stack, level, depth):
    return tl.sum(tl.where(level == depth, stack, stack * 0), 0)


@triton.jit
def verify_traversal_kernel(
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
    LEVELS: tl.constexpr,  # at least max_depth
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
    level = tl.arange(0, LEVELS)
    numbers = tl.zeros([LEVELS], tl.int32)
    floats = tl.zeros([LEVELS], tl.float64)

    # The node that is visited, its depth, its weight, and w and m behind it: before any failure of
    # a child `rest` is a, which p sums up to but for rounding.
    current = -1
    depth = 0
    a = one
    c = one * 0
    rest = one
    m = one
    q_node = 0
    # Its children: the first, behind the last failed one, and c and q_node once another one fails.
    first = num_nodes
    end = 0
    next_c = c
    next_q_node = 0
    a_stack, c_stack, rest_stack, m_stack, next_c_stack = floats, floats, floats, floats, floats
    q_node_stack, first_stack, end_stack, next_q_node_stack = numbers, numbers, numbers, numbers

    node = 0
    state = VISITING
    while state == VISITING:
        failed = -1
        if (node < num_nodes) & (depth < max_depth):
            parent = node - 1
            if parent_ptr is not None:
                parent = tl.load(parent_ptr + node)
            child = node
            node += 1
            if parent == current:
                first = tl.minimum(first, child)
                x = tl.load(token_ptr + child)
                is_known = (x >= 0) & (x < vocab_size)
                p_row = p_ptr + tl.cast(1 + current, tl.int64) * stride_p_row
                q_row = tl.cast(q_node, tl.int64) * stride_q_row
                w_x = weight(
                    x,
                    is_known,
                    p_row,
                    a,
                    q_ptr,
                    q_row,
                    c,
                    nodes,
                    current,
                    first,
                    end,
                    DETERMINISTIC,
                )
                q_x = one
                z = one
                next_c = c
                next_q_node = q_node
                if q_ptr is not None:
                    is_drawn = one > 0
                    if deterministic_ptr is not None:
                        is_drawn = tl.load(deterministic_ptr + child) == 0
                    if is_drawn:
                        next_q_node = child
                        next_q_row = tl.cast(child, tl.int64) * stride_q_row
                        q_x = tl.load(q_ptr + next_q_row + x, mask=is_known, other=0.0)
                        q_x = q_x.to(tl.float64)
                        if not REPLACEMENT:
                            q_x = without(q_x, x, nodes, current, first, end, False)
                            if (end > first) & (q_x != 0):
                                z = remainder(
                                    q_ptr + next_q_row,
                                    vocab_size,
                                    nodes,
                                    current,
                                    first,
                                    end,
                                    BLOCK,
                                )
                        next_c = c + m / z
                if is_known & (q_x != 0):
                    entered = w_x * z / (q_x * m)
                    if entered > 0:
                        a_stack = _pushed(a_stack, level, depth, a)
                        c_stack = _pushed(c_stack, level, depth, c)
                        rest_stack = _pushed(rest_stack, level, depth, rest)
                        m_stack = _pushed(m_stack, level, depth, m)
                        next_c_stack = _pushed(next_c_stack, level, depth, next_c)
                        q_node_stack = _pushed(q_node_stack, level, depth, q_node)
                        first_stack = _pushed(first_stack, level, depth, first)
                        end_stack = _pushed(end_stack, level, depth, end)
                        next_q_node_stack = _pushed(next_q_node_stack, level, depth, next_q_node)
                        current = child
                        depth += 1
                        a = tl.where(entered < 1, entered, one)
                        c = one * 0
                        rest = a
                        m = one
                        first = num_nodes
                        end = 0
                    else:
                        # Weight 0 fails at once; or it is no number.
                        failed = tl.where(entered == 0, child, -1)
                        state = tl.where(entered == 0, VISITING, BROKEN)
        else:
            u = philox_uniform(key, position, current + TRAVERSAL_STREAM)
            if (current < 0) | (u * m < rest):
                state = ACCEPTED
            else:
                failed = current
                current -= 1
                if parent_ptr is not None:
                    current = tl.load(parent_ptr + failed)
                depth -= 1
                a = _popped(a_stack, level, depth)
                c = _popped(c_stack, level, depth)
                rest = _popped(rest_stack, level, depth)
                m = _popped(m_stack, level, depth)
                next_c = _popped(next_c_stack, level, depth)
                q_node = _popped(q_node_stack, level, depth)
                first = _popped(first_stack, level, depth)
                end = _popped(end_stack, level, depth)
                next_q_node = _popped(next_q_node_stack, level, depth)
        if failed >= 0:
            left = total_weight(
                vocab_size,
                p_ptr + tl.cast(1 + current, tl.int64) * stride_p_row,
                a,
                q_ptr,
                tl.cast(next_q_node, tl.int64) * stride_q_row,
                next_c,
                nodes,
                current,
                first,
                failed + 1,
                DETERMINISTIC,
                BLOCK,
            )
            node = failed + 1
            if left != 0:
                state = tl.where(left > 0, VISITING, BROKEN)
                c = next_c
                q_node = next_q_node
                end = failed + 1
                rest = left
                m = left + (1 - a)
            else:
                # Its other children are passed over; it fails, unless a = 1.
                node = num_nodes
                rest = tl.where(a < 1, left, rest)

    token = -1
    if state == ACCEPTED:
        p_row = p_ptr + tl.cast(1 + current, tl.int64) * stride_p_row
        q_row = tl.cast(q_node, tl.int64) * stride_q_row
        if end == 0:
            rest = total_weight(
                vocab_size,
                p_row,
                a,
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
        if (rest > 0) & (rest < float("inf")):
            target = philox_uniform(key, position + depth, NEXT_STREAM) * rest
            token = draw(
                target,
                vocab_size,
                p_row,
                a,
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


def verify_traversal(
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
    """See `traversal.verify_traversal`, and `verify.verify_tree` of what is checked here."""
    columns = (p, q, draft_tokens, parents, cu_nodes, keys, positions)
    num_branches, num_nodes = check_drafts(*columns, deterministic)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    out = empty_acceptance(num_branches, limit, p.device)
    flags = None if q is None or deterministic is None else deterministic.view(torch.uint8)
    _launch(p, q, draft_tokens, parents, flags, cu_nodes, keys, positions, replacement, *out)
    return out


@torch_op(
    "verify_traversal(Tensor p, Tensor? q, Tensor draft_tokens, Tensor? parents,"
    " Tensor? deterministic, Tensor cu_nodes, Tensor keys, Tensor positions, bool replacement,"
    " Tensor(a!) num_accepted, Tensor(b!) path, Tensor(c!) next_token) -> ()"
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
    max_depth = path.shape[1]
    verify_traversal_kernel[(len(num_accepted),)](
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
        max_depth,
        DETERMINISTIC=q is None or deterministic is not None,
        REPLACEMENT=replacement,
        LEVELS=triton.next_power_of_2(max(max_depth, 1)),
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(p.shape[1])),
        num_warps=NUM_WARPS,
    )
