"""The storage formats that the engine knows, so that benchmarks cover a new one as it comes."""

import itertools
from typing import Any, NamedTuple

import parallel_decode.engine.engine as engine_module

KV_DTYPES: tuple[str, ...] = tuple(getattr(engine_module, "KV_DTYPES", ("float32",)))


class Format(NamedTuple):
    """How weights and keys and values are stored."""

    dtype: str
    kv_dtype: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Engine`."""
        if len(KV_DTYPES) == 1:
            return {"dtype": self.dtype}
        return {"dtype": self.dtype, "kv_dtype": self.kv_dtype}

    def __str__(self) -> str:
        return f"{self.dtype}, KV {self.kv_dtype}"


FORMATS = [Format(*names) for names in itertools.product(engine_module.DTYPES, KV_DTYPES)]
