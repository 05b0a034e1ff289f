"""How a block of keys or values lies in memory, for each storage of the KV cache.

Floats: `k_cache` [num_blocks, num_kv_heads, head_dim, BLOCK_SIZE], `v_cache` [num_blocks,
num_kv_heads, BLOCK_SIZE, head_dim]. In memory the last dimension is the innermost one on a CPU,
where a vector holds the tokens of a block. On a GPU it is head_dim for both: k_cache is a
transposed view.

int8: both [num_blocks, num_kv_heads, block_items] bytes, first the rounded numbers, then their
scales in fp16. Keys lie as [head_dim / 4, BLOCK_SIZE, 4] with 128 added, as the integer products
want them, and have a scale for each token and each GROUP_SIZE dimensions, [groups, BLOCK_SIZE];
values lie as above and have a scale for each token, [BLOCK_SIZE].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel_decode.kernels.group_quantized import GROUP_SIZE
from parallel_decode.kernels.plan import BLOCK_SIZE

KV_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
"""On a CPU."""
KV_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}
"""Their numbers in csrc."""
Part = tuple[int, int, int]
"""Offset in bytes, number of chunks, bytes of a chunk; see `token_parts`."""
GPU_KV_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}


def block_items(dtype: torch.dtype, head_dim: int) -> int:
    """Elements of the keys, or of the values, of one KV head in one block."""
    values = head_dim * BLOCK_SIZE
    if dtype != torch.int8:
        return values
    return values + 2 * BLOCK_SIZE * -(-head_dim // GROUP_SIZE)


def cache_shapes(
    dtype: torch.dtype, num_blocks: int, num_kv_heads: int, head_dim: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of k_cache and v_cache."""
    if dtype == torch.int8:
        shape = (num_blocks, num_kv_heads, block_items(dtype, head_dim))
        return shape, shape
    return (
        (num_blocks, num_kv_heads, head_dim, BLOCK_SIZE),
        (num_blocks, num_kv_heads, BLOCK_SIZE, head_dim),
    )


def cache_views(
    keys: Tensor, values: Tensor, num_kv_heads: int, head_dim: int, head_dim_innermost: bool
) -> tuple[Tensor, Tensor]:
    """k_cache and v_cache of [num_blocks, num_kv_heads * block_items] each."""
    k_shape, v_shape = cache_shapes(keys.dtype, len(keys), num_kv_heads, head_dim)
    if head_dim_innermost:
        return keys.view(v_shape).transpose(2, 3), values.view(v_shape)
    return keys.view(k_shape), values.view(v_shape)


def read_keys(k_cache: Tensor, block: int, head_dim: int) -> Tensor:
    """[num_kv_heads, head_dim, BLOCK_SIZE]"""
    raw = k_cache[block]
    if raw.dtype != torch.int8:
        return raw
    values, scale = _split(raw, head_dim)
    scale = scale.view(len(raw), -1, BLOCK_SIZE).repeat_interleave(GROUP_SIZE, 1)[:, :head_dim]
    return _key_values(values, head_dim) * scale


def _key_values(raw: Tensor, head_dim: int) -> Tensor:
    """[num_kv_heads, head_dim * BLOCK_SIZE] int8 -> [num_kv_heads, head_dim, BLOCK_SIZE] fp32."""
    quads = raw.view(torch.uint8).float().view(len(raw), head_dim // 4, BLOCK_SIZE, 4) - 128
    return quads.transpose(2, 3).reshape(len(raw), head_dim, BLOCK_SIZE)


def read_values(v_cache: Tensor, block: int, head_dim: int) -> Tensor:
    """[num_kv_heads, BLOCK_SIZE, head_dim]"""
    raw = v_cache[block]
    if raw.dtype != torch.int8:
        return raw
    values, scale = _split(raw, head_dim)
    values = values.float().view(len(raw), BLOCK_SIZE, head_dim)
    return values * scale[:, :BLOCK_SIZE].unsqueeze(-1)


def write_token(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, block: int, lane: int
) -> None:
    """k, v: [num_kv_heads, head_dim] fp32 into place `lane` of a block."""
    if k_cache.dtype != torch.int8:
        k_cache[block, :, :, lane] = k.to(k_cache.dtype)
        v_cache[block, :, lane, :] = v.to(v_cache.dtype)
        return
    heads, head_dim = k.shape
    num_values = head_dim * BLOCK_SIZE
    groups = F.pad(k, (0, -head_dim % GROUP_SIZE)).view(heads, -1, GROUP_SIZE)
    for cache, x, rows in ((k_cache, groups, None), (v_cache, v.unsqueeze(1), lane)):
        scale = (x.abs().amax(-1) / 127).half()
        step = scale.float().unsqueeze(-1)
        inverse = torch.where(step > 1e-30, 1 / step, torch.zeros_like(step))
        q = (x * inverse).round().clamp(-127, 127).to(torch.int8).flatten(1)[:, :head_dim]
        values = cache[block, :, :num_values]
        scales = cache[block, :, num_values:].view(torch.float16)
        if rows is None:
            offset = (q.to(torch.int16) + 128).to(torch.uint8).view(torch.int8)
            quads = values.view(heads, head_dim // 4, BLOCK_SIZE, 4)
            quads[:, :, lane] = offset.view(heads, head_dim // 4, 4)
            scales.view(heads, -1, BLOCK_SIZE)[:, :, lane] = scale
        else:
            values.view(heads, BLOCK_SIZE, head_dim)[:, lane] = q
            scales[:, lane] = scale[:, 0]


def add_to_tokens(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, block: int, start: int
) -> None:
    """Adds k, v: [num_tokens, num_kv_heads, head_dim] fp32 to the tokens of a block from `start`
    on."""
    head_dim = k.shape[2]
    keys = read_keys(k_cache, block, head_dim).float()
    values = read_values(v_cache, block, head_dim).float()
    for token in range(len(k)):
        lane = start + token
        new_k, new_v = keys[:, :, lane] + k[token], values[:, lane] + v[token]
        write_token(new_k, new_v, k_cache, v_cache, block, lane)


def token_parts(dtype: torch.dtype, head_dim: int) -> tuple[list[Part], list[Part]]:
    """Where the keys, and the values, of a token lie in the bytes of a block's KV head on a CPU:
    in the part (offset, num_chunks, chunk_bytes) has the token in `lane` its chunk number i at
    offset + (i * BLOCK_SIZE + lane) * chunk_bytes.
    """
    if dtype != torch.int8:
        return [(0, head_dim, dtype.itemsize)], [(0, 1, head_dim * dtype.itemsize)]
    num_values, num_groups = head_dim * BLOCK_SIZE, -(-head_dim // GROUP_SIZE)
    return [(0, head_dim // 4, 4), (num_values, num_groups, 2)], [
        (0, 1, head_dim),
        (num_values, 1, 2),
    ]


def move_tokens(
    storage: Tensor, num_kv_heads: int, head_dim: int, source_slots: Tensor, target_slots: Tensor
) -> None:
    """Tokens of a cache on a CPU, from slot to slot as in `acceptance.compact_kv`.

    storage: [num_layers, 2, num_blocks, num_kv_heads * block_items]
    """
    used = source_slots >= 0
    source, target = source_slots[used], target_slots[used]
    num_layers, _, num_blocks = storage.shape[:3]
    raw = storage.view(torch.uint8).view(num_layers, 2, num_blocks, num_kv_heads, -1)
    for plane, parts in enumerate(token_parts(storage.dtype, head_dim)):
        for offset, num_chunks, chunk_bytes in parts:
            end = offset + num_chunks * BLOCK_SIZE * chunk_bytes
            chunks = raw[:, plane, :, :, offset:end].unflatten(
                -1, (num_chunks, BLOCK_SIZE, chunk_bytes)
            )
            moved = chunks[:, source // BLOCK_SIZE, :, :, source % BLOCK_SIZE].clone()
            chunks[:, target // BLOCK_SIZE, :, :, target % BLOCK_SIZE] = moved


def _split(raw: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """[num_kv_heads, block_items] -> (rounded numbers, scales in fp32)."""
    num_values = head_dim * BLOCK_SIZE
    return raw[:, :num_values], raw[:, num_values:].view(torch.float16).float()
