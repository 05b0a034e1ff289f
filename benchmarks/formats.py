"""The storage formats of a CPU, so that benchmarks cover a new one as it comes."""

import itertools
from typing import Any, NamedTuple

from parallel_decode.kernels import KV_DTYPES
from parallel_decode.model.stored_weight import WEIGHT_DTYPES


class Format(NamedTuple):
    """How weights and keys and values are stored."""

    dtype: str
    kv_dtype: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Engine`."""
        return {"dtype": self.dtype, "kv_dtype": self.kv_dtype}

    def __str__(self) -> str:
        return f"{self.dtype}, KV {self.kv_dtype}"


FORMATS = [Format(*names) for names in itertools.product(WEIGHT_DTYPES, KV_DTYPES)]
