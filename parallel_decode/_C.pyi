"""The calls into C++ are checked where they are made, in kernels/ and by csrc/bindings.cpp."""

from typing import Any

def __getattr__(name: str) -> Any: ...
