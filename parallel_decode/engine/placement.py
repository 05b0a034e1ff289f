"""`Placement`: the device, the backend and the number formats of an engine, checked together."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from parallel_decode.kernels import GPU_KV_DTYPES, KV_DTYPES
from parallel_decode.model.stored_weight import FLOAT_DTYPES, WEIGHT_DTYPES

HOST_KV_BYTES = 4 << 30
"""Address space of the KV pool on the host where none is asked for; memory is taken as blocks are
written."""
DEVICE_KV_SHARE = 0.8
"""Of the device's memory that is free once the weights are there."""


@dataclass(frozen=True)
class Placement:
    """Where an engine runs and in which formats."""

    device: torch.device
    backend: str
    dtype: str
    kv_dtype: str

    @classmethod
    def choose(
        cls,
        device: str | torch.device,
        backend: str | None,
        dtype: str | torch.dtype | None,
        kv_dtype: str | None,
    ) -> Placement:
        """What is None is chosen: on a GPU Triton and bfloat16, elsewhere C++ and float32.

        Raises:
            ValueError: names the value that does not exist or does not fit the others.
        """
        place = _device(device)
        on_gpu = place.type == "cuda"
        backend = backend or ("triton" if on_gpu else "cpu")
        if backend == "triton" and not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                "backend 'triton' needs device='cuda'; on a CPU it runs in Triton's interpreter"
                " alone, with TRITON_INTERPRET=1 set before the start"
            )
        if backend != "triton" and on_gpu:
            raise ValueError(f"device {str(place)!r} needs backend 'triton', got {backend!r}")
        name = _dtype_name(("bfloat16" if on_gpu else "float32") if dtype is None else dtype)
        if backend == "triton":
            if name not in FLOAT_DTYPES:
                raise ValueError(
                    f"backend 'triton' stores weights as {', '.join(FLOAT_DTYPES)}, not {name!r}"
                )
            allowed: tuple[str, ...] = (name, "float8_e4m3fn")
            kv_name = name if kv_dtype is None else kv_dtype
        else:
            allowed = tuple(KV_DTYPES)
            kv_name = "float32" if kv_dtype is None else kv_dtype
        if kv_name not in allowed:
            raise ValueError(
                f"kv_dtype must be one of {', '.join(allowed)}, got {kv_name!r} with backend"
                f" {backend!r}"
            )
        return cls(place, backend, name, kv_name)

    @property
    def kv_torch_dtype(self) -> torch.dtype:
        return {**KV_DTYPES, **GPU_KV_DTYPES}[self.kv_dtype]

    @property
    def default_kv_bytes(self) -> int:
        """Of the pool where nobody says how many tokens it shall hold."""
        if self.device.type != "cuda":
            return HOST_KV_BYTES
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free * DEVICE_KV_SHARE)


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as failure:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}") from failure
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {str(device)!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no GPU"
        raise ValueError(
            f"device {str(device)!r}: this torch ({torch.__version__}) {why}. Use device='cpu', or"
            " install a CUDA build of torch on a machine with a GPU"
        )
    return place


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in WEIGHT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(WEIGHT_DTYPES)}, got {name!r}")
    return name
