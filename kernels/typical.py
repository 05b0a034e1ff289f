"""Typical acceptance of a draft (Cai et al. 2024, Medusa): the definition.

NOT LOSSLESS: what is committed does not have the law of the target's own tokens. A node with token
x behind a node with the target's distribution p is accepted, whatever it was drawn from, if

    p(x) > min(epsilon, alpha exp(-H)),  H = -sum_y p(y) ln p(y)

and all nodes above it are. The path is the longest one of such nodes, the first of equally long
ones, and the next token is drawn from p behind it. Where p(x) > epsilon, H is not looked at; a
comparison with NaN fails; a p without any weight to draw from, or with a NaN, at the end of the
path: the branch has no result, as in `acceptance`.

Chance is only number position + depth of NEXT_STREAM, which draws the next token.
"""

import numpy as np
import torch
from torch import Tensor

from parallel_decode.kernels.acceptance import (
    NEXT_STREAM,
    Acceptance,
    Row,
    Uniforms,
    Walk,
    longest_path,
    pack_walks,
)
from parallel_decode.kernels.draft_tree import (
    chain_parents,
    check_column,
    check_laws,
    check_trees,
    depth_limit,
    trees,
)

EPSILON = 0.09
ALPHA = 0.3
"""Of the paper's experiments."""


def accept_typical(
    tokens: list[int],
    parents: list[int],
    p: Row,
    epsilon: float,
    alpha: float,
    max_depth: int,
    position: int,
    uniforms: Uniforms,
) -> Walk:
    """One branch. p: [1 + num_nodes, vocab_size], its own row first."""

    def is_typical(node: int) -> bool:
        law, x = p[1 + parents[node]], tokens[node]
        if not 0 <= x < len(law):
            return False
        if law[x] > epsilon:
            return True
        logs = np.log(law, where=law > 0, out=np.zeros_like(law))
        return bool(law[x] > alpha * np.exp(np.sum(law * logs)))

    path = longest_path(parents, max_depth, is_typical)
    row = p[1 + path[-1]] if path else p[0]
    return path, uniforms.choose(row, position + len(path), NEXT_STREAM)


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
    """Typical acceptance over one tree a branch.

    Args:
        p, draft_tokens, parents, cu_nodes, keys, positions, max_depth: as in
            `acceptance.verify_tree`.

    Raises:
        ValueError: a shape, a dtype or a tree is not as said.
    """
    num_branches, num_nodes = check_trees(draft_tokens, parents, cu_nodes)
    check_laws(p, None, None, num_branches, num_nodes)
    check_column("keys", keys, torch.int64, num_branches)
    check_column("positions", positions, torch.int64, num_branches)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    if parents is None:
        parents = chain_parents(num_nodes, cu_nodes)
    target = p.double().cpu().numpy()
    walks = [
        accept_typical(
            draft_tokens[begin:end].tolist(),
            above,
            target[begin + branch : end + branch + 1],
            epsilon,
            alpha,
            limit,
            int(positions[branch]),
            Uniforms(int(keys[branch])),
        )
        for branch, (begin, end, above) in enumerate(trees(parents, cu_nodes))
    ]
    return pack_walks(walks, limit, draft_tokens.device)
