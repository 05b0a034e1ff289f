"""`Fields`: typed reads from a mapping that came out of an untrusted file."""

import math
from collections.abc import Mapping
from typing import Any


class Fields:
    """Reads keys of `raw` with a type check; a wrong value raises a `ValueError` that names it.

    A key that is absent or null has the default; without a default it is an error.
    """

    def __init__(self, raw: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.raw = raw
        self.source = source
        self.prefix = prefix

    def _fail(self, key: str, expected: str) -> ValueError:
        value = repr(self.raw.get(self.prefix + key))
        return ValueError(f"{self.source}: {self.prefix}{key} must be {expected}, got {value[:80]}")

    def optional_integer(self, key: str, default: int | None) -> int | None:
        """Here only an absent key has the default: null means "no sliding window", "no bos"."""
        value = self.raw.get(self.prefix + key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self._fail(key, "an integer")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.optional_integer(key, default)
        value = default if value is None else value
        if value is None:
            raise self._fail(key, "an integer")
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One integer or a list of them."""
        value = self.raw.get(self.prefix + key, default)
        values = () if value is None else value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            raise self._fail(key, "an integer or a list of integers")
        return tuple(values)

    def optional_number(self, key: str) -> float | None:
        value = self.raw.get(self.prefix + key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._fail(key, "a number")
        if (isinstance(value, int) and abs(value) > 1 << 60) or not math.isfinite(value):
            raise self._fail(key, "a finite number")
        return float(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.optional_number(key)
        value = default if value is None else value
        if value is None:
            raise self._fail(key, "a number")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.raw.get(self.prefix + key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._fail(key, "true or false")
        return value
