"""What else computes attention over a tree of branches on a card, for `benchmarks.gpu_kernels`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Layer = Callable[[int], torch.Tensor]
MAX_EXPANDED_BYTES = 24 << 30
PAGE = 16


@dataclass(frozen=True)
class Peer:
    """package: that has to be there. prepare: a problem -> its layers, or None where the peer can't
    compute it."""

    package: str
    prepare: Callable[[Any], Layer | None]


def _expanded(problem: Any, num_layers: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Keys and values copied for every branch: [num_branches, num_tokens, num_kv_heads, head_dim];
    None where branches differ in length, have drafts, or take too much memory."""
    tables = problem.tables
    lengths = {table.num_tokens for table in tables}
    size = len(tables) * max(lengths) * problem.shape.page_bytes // PAGE
    too_large = size * problem.shape.num_kv_heads * num_layers > MAX_EXPANDED_BYTES
    if len(lengths) > 1 or problem.tree.draft or too_large:
        return None
    layers = []
    for k_cache, v_cache in problem.layers[:num_layers]:
        own = [problem.own_keys(table, k_cache, v_cache) for table in tables]
        layers.append((torch.stack([k for k, _ in own]), torch.stack([v for _, v in own])))
    return layers


def sdpa(problem: Any) -> Layer | None:
    """torch's own attention over keys copied for every branch."""
    layers = _expanded(problem, min(4, problem.num_layers))
    if layers is None:
        return None
    q = problem.q.unsqueeze(2)  # [num_branches, num_heads, 1, head_dim]

    def layer(index: int) -> torch.Tensor:
        k, v = layers[index % len(layers)]
        out = F.scaled_dot_product_attention(
            q, k.transpose(1, 2), v.transpose(1, 2), scale=problem.scale, enable_gqa=True
        )
        return out.squeeze(2)

    return layer


def flash_attention(problem: Any) -> Layer | None:
    """flash-attn's decode with split keys, over keys copied for every branch."""
    layers = _expanded(problem, min(4, problem.num_layers))
    if layers is None:
        return None
    with_kvcache = import_module("flash_attn").flash_attn_with_kvcache
    q = problem.q.unsqueeze(1)
    lengths = torch.full((len(q),), layers[0][0].shape[1], dtype=torch.int32, device=q.device)

    def layer(index: int) -> torch.Tensor:
        k, v = layers[index % len(layers)]
        return with_kvcache(
            q, k, v, cache_seqlens=lengths, softmax_scale=problem.scale, causal=True
        ).squeeze(1)

    return layer


def flex_attention(problem: Any) -> Layer | None:
    """FlexAttention over one row of all tokens of a two-level tree, with a block mask."""
    tree = problem.tree
    if len(tree.nodes) != 2 or tree.draft or tree.nodes[0] != 1 or tree.tokens[0] % PAGE:
        return None
    flex = import_module("torch.nn.attention.flex_attention")
    prefix, own = tree.tokens
    num_branches = tree.nodes[1]
    layers = []
    for k_cache, v_cache in problem.layers:
        parts = [problem.own_keys(table, k_cache, v_cache) for table in problem.tables]
        k = torch.cat([parts[0][0][:prefix], *(k[prefix:] for k, _ in parts)])
        v = torch.cat([parts[0][1][:prefix], *(v[prefix:] for _, v in parts)])
        layers.append((k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)))

    def sees(b: Any, h: Any, q_index: Any, kv_index: Any) -> Any:
        return (kv_index < prefix) | ((kv_index - prefix) // own == q_index)

    total = prefix + num_branches * own
    device = problem.q.device
    mask = flex.create_block_mask(sees, None, None, num_branches, total, device=str(device))
    attend = torch.compile(flex.flex_attention) if device.type == "cuda" else flex.flex_attention
    q = problem.q.transpose(0, 1).unsqueeze(0).contiguous()

    def layer(index: int) -> torch.Tensor:
        k, v = layers[index]
        out = attend(q, k, v, block_mask=mask, scale=problem.scale, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1)

    return layer


def flashinfer_cascade(problem: Any) -> Layer | None:
    """FlashInfer's multi-level cascade, planned once outside the timing."""
    tree = problem.tree
    if tree.draft or tree.nodes[0] != 1 or any(tokens % PAGE for tokens in tree.tokens):
        return None
    flashinfer = import_module("flashinfer")
    device, shape = problem.q.device, problem.shape
    num_branches = tree.nodes[-1]
    entries = [table.entries()[:, 0] for table in problem.tables]
    indptrs, pages, page_indptrs, last = [], [], [], []
    begin = 0
    for count, tokens in zip(tree.nodes, tree.tokens, strict=True):
        size = tokens // PAGE
        first = [-(-i * num_branches // count) for i in range(count + 1)]
        blocks = [entries[first[i]][begin : begin + size] for i in range(count)]
        indptrs.append(torch.tensor(first, dtype=torch.int32, device=device))
        pages.append(torch.from_numpy(np.concatenate(blocks)).to(device))
        page_indptrs.append(torch.arange(count + 1, dtype=torch.int32, device=device) * size)
        last.append(torch.full((count,), PAGE, dtype=torch.int32, device=device))
        begin += size
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(tree.nodes), workspace, "HND")
    wrapper.plan(
        indptrs,
        page_indptrs,
        pages,
        last,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        PAGE,
        q_data_type=problem.dtype,
    )
    caches = [
        torch.stack([k.transpose(2, 3), v], 1) for k, v in problem.layers
    ]  # [num_blocks, 2, num_kv_heads, PAGE, head_dim]

    def layer(index: int) -> torch.Tensor:
        return wrapper.run(problem.q, caches[index])

    return layer


PEERS = {
    "torch SDPA, expanded": Peer("torch", sdpa),
    "FlexAttention": Peer("torch", flex_attention),
    "flash-attn, expanded": Peer("flash_attn", flash_attention),
    "FlashInfer cascade": Peer("flashinfer", flashinfer_cascade),
}
