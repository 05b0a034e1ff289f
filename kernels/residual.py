"""What the rejected children of a node leave of the target's distribution, without storing it.

Multi-round rejection (see `acceptance`) makes norm(max(p' - q', 0)) of p' at every rejected child.
From p' = p on, with c = 0 and m = 1, it always is p' = w / m of the target's p and the drafter's q,

    w(x) = max(p(x) - c q(x), 0),  m = sum_x w(x)

as max(p' - q', 0) of such a p' has the same form with c + m / z in place of c, where q' = q / z.
Without replacement q' lacks the tokens of rejected siblings and z is the sum of the others; a
rejected x had p'(x) < q'(x), so that its w is 0 from there on whether q keeps it or not. A rejected
deterministic child has q' = 1 at its token, and w is set to 0 there. All of this takes one q for
all siblings.

A node of `traversal` has a weight a, where the law of its tokens and of its failure is a p(x) and
1 - a. A failed child leaves of it w(x) = max(a p(x) - c q(x), 0) and 1 - a, of which the sum is m.

A pass over w reads 8 bytes a token, and each token is summed up in fp64.
"""

import triton
import triton.language as tl

INT32_MAX = tl.constexpr(0x7FFFFFFF)


@triton.jit
def without(w, n, nodes, parent, first, end, FLAGGED: tl.constexpr):
    """w of the tokens n, 0 for those of siblings in [first, end); FLAGGED: deterministic ones.

    nodes: pointers to tokens, parents (None: of chains, where all of the range are siblings) and
    flags of deterministic nodes (None: all are).
    """
    token_ptr, parent_ptr, deterministic_ptr = nodes
    for node in range(first, end):
        # Clamped, as no token outside the vocabulary may look like one of its tokens in 32 bits.
        token = tl.minimum(tl.maximum(tl.load(token_ptr + node), -1), INT32_MAX).to(tl.int32)
        dropped = n == token
        if parent_ptr is not None:
            dropped = dropped & (tl.load(parent_ptr + node) == parent)
        if FLAGGED and deterministic_ptr is not None:
            dropped = dropped & (tl.load(deterministic_ptr + node) != 0)
        w = tl.where(dropped, w * 0, w)  # a NaN stays one
    return w


@triton.jit
def weight(
    n, mask, p_row, a, q_ptr, q_row, c, nodes, parent, first, end, DETERMINISTIC: tl.constexpr
):
    """w of the tokens n in fp64. [first, end): siblings that were rejected.

    a: fp64, 1 where nodes have no weights; p_row: pointer to the row of p; q_row: offset of the row
    of q, with no q_ptr where no node was drawn; DETERMINISTIC: some nodes were not.
    """
    w = a * tl.load(p_row + n, mask=mask, other=0.0).to(tl.float64)
    if q_ptr is not None:  # noqa: SIM102 (known when compiling)
        # Rows of deterministic nodes may hold anything: as long as c is 0, q is not read.
        if c != 0:
            q = tl.load(q_ptr + q_row + n, mask=mask, other=0.0)
            w = w - c * q.to(tl.float64)
    w = tl.where(w <= 0, 0.0, w)  # a NaN stays one
    if DETERMINISTIC:
        w = without(w, n, nodes, parent, first, end, True)
    return w


@triton.jit
def total_weight(
    vocab_size,
    p_row,
    a,
    q_ptr,
    q_row,
    c,
    nodes,
    parent,
    first,
    end,
    DETERMINISTIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sum_x w(x), which is m but for 1 - a."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab_size, BLOCK):
        n = start + tl.arange(0, BLOCK)
        mask = n < vocab_size
        total += weight(
            n, mask, p_row, a, q_ptr, q_row, c, nodes, parent, first, end, DETERMINISTIC
        )
    return tl.sum(total, 0)


@triton.jit
def draw(
    target,
    vocab_size,
    p_row,
    a,
    q_ptr,
    q_row,
    c,
    nodes,
    parent,
    first,
    end,
    DETERMINISTIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first token x with sum_{y <= x} w(y) > target, where 0 <= target < m."""
    token = -1
    start = 0
    reached = target * 0
    last_chunk = 0
    is_last = False
    while token < 0:
        n = start + tl.arange(0, BLOCK)
        mask = n < vocab_size
        w = weight(n, mask, p_row, a, q_ptr, q_row, c, nodes, parent, first, end, DETERMINISTIC)
        before = reached
        part = tl.sum(w, 0)
        reached += part
        last_chunk = tl.where(part > 0, start, last_chunk)
        if (reached > target) | is_last:
            beyond = before + tl.cumsum(w, 0) > target
            exceeding = tl.min(tl.where(beyond & (w > 0), n, INT32_MAX), 0)
            token = tl.minimum(exceeding, tl.max(tl.where(w > 0, n, -1), 0))
        start += BLOCK
        # A sum in another order may end a rounding short of m: take the last token with weight.
        is_last = start >= vocab_size
        start = tl.where(is_last, last_chunk, start)
        target = tl.where(is_last, float("inf"), target)
    return token


@triton.jit
def remainder(q_row_ptr, vocab_size, nodes, parent, first, end, BLOCK: tl.constexpr):
    """z: the sum of q without the tokens of siblings in [first, end)."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab_size, BLOCK):
        n = start + tl.arange(0, BLOCK)
        q = tl.load(q_row_ptr + n, mask=n < vocab_size, other=0.0).to(tl.float64)
        total += without(q, n, nodes, parent, first, end, False)
    return tl.sum(total, 0)
