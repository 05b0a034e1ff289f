"""The op tables: one set of names, several backends.

Installed as `parallel_decode.kernels` only.
"""

from parallel_decode.kernels.cpu import CpuOps
from parallel_decode.kernels.group_quantized import GroupQuantized
from parallel_decode.kernels.kv_format import KV_DTYPES
from parallel_decode.kernels.plan import BLOCK_SIZE, BranchPlan
from parallel_decode.kernels.reference import ReferenceOps

__all__ = [
    "BLOCK_SIZE",
    "KV_DTYPES",
    "BranchPlan",
    "CpuOps",
    "GroupQuantized",
    "Ops",
    "ReferenceOps",
    "__version__",
    "open_ops",
]

# Some transformers releases probe `import kernels` when the repository root is on sys.path, and
# fail on a module without a version.
__version__ = "0.1.0"

Ops = CpuOps | ReferenceOps


def open_ops(backend: str, isa: str = "best") -> Ops:
    """The op table called `backend`: "cpu" or "reference"."""
    if backend == "cpu":
        return CpuOps(isa)
    if backend == "reference":
        return ReferenceOps()
    raise ValueError(f"backend must be 'cpu' or 'reference', got {backend!r}")
