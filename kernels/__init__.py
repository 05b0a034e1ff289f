"""The op tables: one set of names, several backends.

Installed as `parallel_decode.kernels` only.
"""

from importlib import import_module

import torch

from parallel_decode.kernels.cpu import CpuOps
from parallel_decode.kernels.device_plan import DevicePlans
from parallel_decode.kernels.group_quantized import GroupQuantized
from parallel_decode.kernels.kv_format import GPU_KV_DTYPES, KV_DTYPES
from parallel_decode.kernels.ops import Ops
from parallel_decode.kernels.plan import BLOCK_SIZE, BranchPlan
from parallel_decode.kernels.reference import ReferenceOps

__all__ = [
    "BLOCK_SIZE",
    "GPU_KV_DTYPES",
    "KV_DTYPES",
    "BranchPlan",
    "CpuOps",
    "DevicePlans",
    "GroupQuantized",
    "Ops",
    "ReferenceOps",
    "__version__",
    "open_ops",
]

# Some transformers releases probe `import kernels` when the repository root is on sys.path, and
# fail on a module without a version.
__version__ = "0.1.0"


def open_ops(backend: str, isa: str = "best", device: torch.device | str = "cpu") -> Ops:
    """The op table called `backend`: "cpu", "triton" or "reference"."""
    if backend == "cpu":
        return CpuOps(isa)
    if backend == "triton":
        # Triton takes a second to import, and is not there on every system.
        triton_ops = import_module("parallel_decode.kernels.triton_ops")
        ops: Ops = triton_ops.TritonOps(torch.device(device))
        return ops
    if backend == "reference":
        return ReferenceOps()
    raise ValueError(f"backend must be 'cpu', 'triton' or 'reference', got {backend!r}")
