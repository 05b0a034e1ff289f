"""The longest path of most probable tokens, one program a branch. `acceptance` is the definition.

Every node climbs to the root, NODE_BLOCK of them together, and is on such a path if it and all that
it passes hold the token that the target finds most probable behind their parent. A program reads
12 bytes a node and level, mostly from L1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.acceptance import Acceptance
from parallel_decode.kernels.draft_tree import (
    check_column,
    check_devices,
    check_trees,
    depth_limit,
)
from parallel_decode.kernels.torch_op import torch_op

INT32_MAX = tl.constexpr(0x7FFFFFFF)

NODE_BLOCK = 64
"""Drafts seldom have more nodes."""


@triton.jit
def store_acceptance(
    num_accepted_ptr, path_ptr, next_token_ptr, parent_ptr, branch, node, depth, token, max_depth
):
    """The path to `node`, `depth` long, and the next token; without one there is no path."""
    depth = tl.where(token < 0, 0, depth)
    path_ptr += branch.to(tl.int64) * max_depth
    for place in range(depth, max_depth):
        tl.store(path_ptr + place, -1)
    for climbed in range(depth):
        tl.store(path_ptr + depth - 1 - climbed, node)
        if parent_ptr is None:
            node -= 1
        else:
            node = tl.load(parent_ptr + node)
    tl.store(num_accepted_ptr + branch, depth)
    tl.store(next_token_ptr + branch, token)


@triton.jit
def verify_greedy_kernel(
    argmax_ptr,  # [num_branches + num_nodes] int64
    token_ptr,  # [num_nodes] int64
    parent_ptr,  # [num_nodes] int32; None: chains
    cu_nodes_ptr,  # [num_branches + 1] int32
    num_accepted_ptr,  # [num_branches] int32
    path_ptr,  # [num_branches, max_depth] int32
    next_token_ptr,  # [num_branches] int64
    max_depth,
    BLOCK: tl.constexpr,
):
    """Grid: (num_branches,)."""
    branch = tl.program_id(0)
    begin = tl.load(cu_nodes_ptr + branch)
    num_nodes = tl.load(cu_nodes_ptr + branch + 1) - begin
    argmax_ptr += begin + branch
    token_ptr += begin
    if parent_ptr is not None:
        parent_ptr += begin
    deepest = -1
    max_length = 0
    for start in range(0, num_nodes, BLOCK):
        node = start + tl.arange(0, BLOCK)
        climber = tl.where(node < num_nodes, node, -1)
        is_on_path = node < num_nodes
        length = tl.zeros([BLOCK], tl.int32)
        while tl.max(climber, 0) >= 0:
            climbs = climber >= 0
            token = tl.load(token_ptr + climber, mask=climbs, other=-1)
            parent = tl.maximum(climber - 1, -1)
            if parent_ptr is not None:
                parent = tl.load(parent_ptr + climber, mask=climbs, other=-1)
            argmax = tl.load(argmax_ptr + 1 + parent, mask=climbs, other=-1)
            is_on_path = is_on_path & ((climber < 0) | ((token == argmax) & (argmax >= 0)))
            length += climbs.to(tl.int32)
            climber = parent
        length = tl.where(is_on_path & (length <= max_depth), length, 0)
        longest = tl.max(length, 0)
        if longest > max_length:
            max_length = longest
            deepest = tl.min(tl.where(length == longest, node, INT32_MAX), 0)
    token = tl.load(argmax_ptr + 1 + deepest)
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


def empty_acceptance(num_branches: int, max_depth: int, device: torch.device) -> Acceptance:
    return Acceptance(
        torch.empty(num_branches, dtype=torch.int32, device=device),
        torch.empty(num_branches, max_depth, dtype=torch.int32, device=device),
        torch.empty(num_branches, dtype=torch.int64, device=device),
    )


def verify_greedy(
    target_argmax: Tensor,
    draft_tokens: Tensor,
    parents: Tensor | None,
    cu_nodes: Tensor,
    max_depth: int | None = None,
) -> Acceptance:
    """See `acceptance.verify_greedy`. With a max_depth nothing is read back from the device.

    Raises:
        ValueError: a shape, a dtype or a device does not fit.
    """
    num_branches, num_nodes = check_trees(draft_tokens, parents, cu_nodes)
    check_column("target_argmax", target_argmax, torch.int64, num_branches + num_nodes)
    check_devices(target_argmax, draft_tokens=draft_tokens, parents=parents, cu_nodes=cu_nodes)
    limit = depth_limit(num_nodes, parents, cu_nodes, max_depth)
    out = empty_acceptance(num_branches, limit, target_argmax.device)
    _launch(target_argmax, draft_tokens, parents, cu_nodes, *out)
    return out


@torch_op(
    "verify_greedy(Tensor target_argmax, Tensor draft_tokens, Tensor parents, Tensor cu_nodes,"
    " Tensor(a!) num_accepted, Tensor(b!) path, Tensor(c!) next_token) -> ()"
)
def _launch(
    target_argmax: Tensor,
    draft_tokens: Tensor,
    parents: Tensor,
    cu_nodes: Tensor,
    num_accepted: Tensor,
    path: Tensor,
    next_token: Tensor,
) -> None:
    verify_greedy_kernel[(len(num_accepted),)](
        target_argmax,
        draft_tokens,
        parents,
        cu_nodes,
        num_accepted,
        path,
        next_token,
        path.shape[1],
        BLOCK=NODE_BLOCK,
        num_warps=1,
    )
