"""Keys and values of a step's tokens into their slots of the paged cache.

    cache[slot // BLOCK_SIZE, head, slot % BLOCK_SIZE] = x[token, head]

A head of a slot is contiguous, for keys as for values. Each number is read once and written once,
at half the bytes or fewer where the cache is fp8: x / scale of the head, to the nearest e4m3. A
program stores all heads of one token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.e4m3 import float_to_e4m3
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.rows import check_devices, check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op


@triton.jit
def _store_heads(
    x_ptr,
    cache_ptr,
    scale_ptr,
    stride_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One token's heads at x_ptr; cache_ptr is the place of the first one."""
    h = tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (h < NUM_KV_HEADS) & (d < HEAD_DIM)
    x = tl.load(x_ptr + h * stride_head + d, mask=mask, other=0)
    if cache_ptr.dtype.element_ty == tl.uint8:
        x = x.to(tl.float32)
        if scale_ptr is not None:
            x = x / tl.load(scale_ptr + h, mask=h < NUM_KV_HEADS, other=1)
        x = float_to_e4m3(x)
    tl.store(cache_ptr + h * (PAGE * HEAD_DIM) + d, x, mask=mask)


@triton.jit
def kv_store_kernel(
    k_ptr,  # [num_tokens, NUM_KV_HEADS, HEAD_DIM]
    v_ptr,
    k_cache_ptr,  # [num_blocks, NUM_KV_HEADS, PAGE, HEAD_DIM]
    v_cache_ptr,
    k_scale_ptr,  # [NUM_KV_HEADS] fp32 or None
    v_scale_ptr,
    slot_mapping_ptr,  # [num_tokens] int64
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Grid: (num_tokens, 2), keys and values. A slot of -1 is none: padding of a batch."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    if slot < 0:
        return
    place = (slot // PAGE * (NUM_KV_HEADS * PAGE) + slot % PAGE) * HEAD_DIM
    if tl.program_id(1) == 0:
        _store_heads(
            k_ptr + token * stride_k_token,
            k_cache_ptr + place,
            k_scale_ptr,
            stride_k_head,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_H,
            BLOCK_D,
            PAGE,
        )
    else:
        _store_heads(
            v_ptr + token * stride_v_token,
            v_cache_ptr + place,
            v_scale_ptr,
            stride_v_head,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_H,
            BLOCK_D,
            PAGE,
        )


def kv_store(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """See `reference.ReferenceOps.kv_store`. Tokens whose slot is negative are not stored.

    Args:
        k, v: [num_tokens, num_kv_heads, head_dim] fp32, fp16 or bf16, contiguous in the last
            dimension.
        k_cache: [num_blocks, num_kv_heads, head_dim, BLOCK_SIZE], head_dim contiguous, in the dtype
            of k or float8_e4m3fn.
        v_cache: [num_blocks, num_kv_heads, BLOCK_SIZE, head_dim], contiguous, as k_cache.
        slot_mapping: [num_tokens] int64, contiguous, each below num_blocks * BLOCK_SIZE.
        k_scale, v_scale: [num_kv_heads] fp32, what numbers of fp8 caches will be multiplied by.

    Raises:
        ValueError: a shape, stride, dtype or device does not fit the others.
    """
    _check(k, v, k_cache, v_cache, slot_mapping)
    if k_cache.dtype == torch.float8_e4m3fn:
        _check_scales(k, k_scale=k_scale, v_scale=v_scale)
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    elif k_scale is not None or v_scale is not None:
        raise ValueError(f"scales belong to fp8 caches, these are {k_cache.dtype}")
    _launch(k, v, k_cache, v_cache, k_scale, v_scale, slot_mapping)


@torch_op(
    "kv_store(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k_scale,"
    " Tensor? v_scale, Tensor slot_mapping) -> ()"
)
def _launch(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    slot_mapping: Tensor,
) -> None:
    num_tokens, num_kv_heads, head_dim = k.shape
    block_h, block_d = triton.next_power_of_2(num_kv_heads), triton.next_power_of_2(head_dim)
    kv_store_kernel[(num_tokens, 2)](
        k,
        v,
        k_cache,
        v_cache,
        k_scale,
        v_scale,
        slot_mapping,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        PAGE=BLOCK_SIZE,
        num_warps=num_warps(block_h * block_d),
    )


def _check(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    check_rows("k", k, *k.shape[1:2], k.shape[-1])
    check_rows("v", v, *k.shape[1:])
    if len(v) != len(k) or v.dtype != k.dtype:
        raise ValueError(f"k is {k.dtype} of {len(k)} tokens, v is {v.dtype} of {len(v)}")
    num_kv_heads, head_dim = k.shape[1:]
    page = head_dim * BLOCK_SIZE
    for name, cache, shape, strides in (
        ("k_cache", k_cache, (head_dim, BLOCK_SIZE), (1, head_dim)),
        ("v_cache", v_cache, (BLOCK_SIZE, head_dim), (head_dim, 1)),
    ):
        if cache.dtype not in (k.dtype, torch.float8_e4m3fn) or cache.dtype != k_cache.dtype:
            raise ValueError(f"{name} is {cache.dtype}, k is {k.dtype}, k_cache {k_cache.dtype}")
        expected = (num_kv_heads * page, page, *strides)
        if tuple(cache.shape[1:]) != (num_kv_heads, *shape) or cache.stride() != expected:
            raise ValueError(
                f"{name} must be [num_blocks, {num_kv_heads}, {shape[0]}, {shape[1]}] with strides"
                f" {expected}, got {tuple(cache.shape)} with strides {cache.stride()}"
            )
    if (
        slot_mapping.dtype != torch.int64
        or tuple(slot_mapping.shape) != (len(k),)
        or not slot_mapping.is_contiguous()
    ):
        raise ValueError(
            f"slot_mapping must hold {len(k)} int64, got {slot_mapping.dtype}"
            f" {tuple(slot_mapping.shape)} with strides {slot_mapping.stride()}"
        )
    check_devices(k, v=v, k_cache=k_cache, v_cache=v_cache, slot_mapping=slot_mapping)


def _check_scales(k: Tensor, **scales: Tensor | None) -> None:
    num_kv_heads = k.shape[1]
    for name, scale in scales.items():
        if scale is None:
            continue
        if (
            scale.dtype != torch.float32
            or tuple(scale.shape) != (num_kv_heads,)
            or not scale.is_contiguous()
        ):
            raise ValueError(
                f"{name} must hold {num_kv_heads} fp32, got {scale.dtype} {tuple(scale.shape)}"
            )
        check_devices(k, **{name: scale})
