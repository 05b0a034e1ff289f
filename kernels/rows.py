"""Rows of activations: what the kernels that go row by row take, and how they cut a row."""

import torch
from torch import Tensor

ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def num_warps(num_items: int) -> int:
    """Of a program that holds `num_items` numbers: 16 a thread, so that each has two to four loads
    of 16 bytes under way, and at most the 16 warps of half a multiprocessor's threads."""
    return min(max(num_items // 512, 1), 16)


def check_rows(name: str, x: Tensor, *shape: int) -> None:
    """ValueError unless x is [num_rows, *shape] of activations, contiguous in the last dimension.

    The rows themselves may be strided.
    """
    if x.dtype not in ACTIVATION_DTYPES:
        raise ValueError(f"{name} must be float32, float16 or bfloat16, not {x.dtype}")
    if tuple(x.shape[1:]) != shape or x.stride(-1) != 1:
        expected = ", ".join(map(str, ("num_rows", *shape)))
        raise ValueError(
            f"{name} must be [{expected}] and contiguous in the last dimension, got"
            f" {tuple(x.shape)} with strides {x.stride()}"
        )


def check_devices(x: Tensor, **others: Tensor) -> None:
    """ValueError unless all lie on the device of x."""
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, the activations are on {x.device}")
