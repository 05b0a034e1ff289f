"""Leaf-to-root verification of a draft: the definition that the kernels are tested against.

`acceptance` decides from the root down and throws a path away at its first rejection. Here paths
are decided from their ends (Weng et al. 2025, traversal verification; of a chain it is the block
verification of Sun et al. 2025), with the same law of what is committed and at least as many tokens
of it. Drafts, their laws q' and cases of probability 0 are those of `acceptance`.

A node v is visited with a weight a, its probability to be in the path; the branch itself, the root,
has a = 1. With P = p, the target's distribution behind v, its children are tried in order:

    visit x with the weight min(1, a P(x) / q'(x)), unless that is 0
    where x fails, with S = sum_y max(a P(y) - q'(y), 0):
        P <- max(a P - q', 0) / S,  a <- S / (S + 1 - a)

When none is left, v fails with probability 1 - a. Otherwise the path ends at v and the next token
is drawn from P. So a P and the 1 - a of a failure make one law, of which a child's failure leaves
the residual, as a rejection does in `acceptance`.

    S = 0 with a < 1: a is 0, v fails, and the siblings left are passed over.
    S = 0 with a = 1: the rows' sums differ by rounding. P stays, the siblings are passed over.
    NaN in a weight or in S, or a P without any weight to draw from: the branch has no result.

Chance is, with the key and the position of `acceptance`, and `depth` tokens accepted,

    index = position, stream = TRAVERSAL_STREAM + n            whether node n of the tree fails
    index = position + depth, stream = NEXT_STREAM             draws the next token

The decision looks at all of a tree, also at what lies behind the tokens that are committed. So no
number of it belongs to the position of its node, which the next step decides about anew; and a
drafter must not draw a token with a number that it used in an earlier step for the same position.
"""

import numpy as np
from torch import Tensor

from parallel_decode.kernels.acceptance import (
    NEXT_STREAM,
    TRAVERSAL_STREAM,
    Acceptance,
    Row,
    Uniforms,
    Walk,
    draft_law,
    verify_by,
)

NO_RESULT: Walk = ([], -1)


def traverse(
    tokens: list[int],
    parents: list[int],
    p: Row,
    q: Row | None,
    deterministic: list[bool],
    replacement: bool,
    max_depth: int,
    position: int,
    uniforms: Uniforms,
) -> Walk:
    """One branch, as `acceptance.accept`."""

    def visit(node: int, path: list[int], a: float) -> Walk | None:
        """The result, or None where the node fails."""
        law_behind, rejected = p[1 + node], list[int]()
        children = [n for n, parent in enumerate(parents) if parent == node]
        for child in children if len(path) < max_depth else []:
            token = tokens[child]
            if not 0 <= token < len(law_behind):
                continue
            row = None if q is None or deterministic[child] else q[child]
            law = draft_law(row, token, rejected, replacement, law_behind)
            if law[token] == 0:
                continue
            weight = a * law_behind[token] / law[token]
            if np.isnan(weight):
                return NO_RESULT
            if weight > 0:
                walk = visit(child, [*path, child], min(1.0, weight))
                if walk is not None:
                    return walk
            rejected.append(token)
            rest = np.maximum(a * law_behind - law, 0)
            total = rest.sum()
            if np.isnan(total):
                return NO_RESULT
            if total == 0:
                a = 1.0 if a == 1 else 0.0
                break
            law_behind, a = rest / total, total / (total + 1 - a)
        if node < 0 or uniforms.below(a, position, TRAVERSAL_STREAM + node):
            return path, uniforms.choose(law_behind, position + len(path), NEXT_STREAM)
        return None

    # The root has a = 1 to the end, and does not fail.
    return visit(-1, [], 1.0) or NO_RESULT


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
    """Traversal verification over one tree a branch; all is as in `acceptance.verify_tree`."""
    columns = (p, q, draft_tokens, parents, cu_nodes, keys, positions)
    return verify_by(traverse, *columns, replacement, deterministic, max_depth)
