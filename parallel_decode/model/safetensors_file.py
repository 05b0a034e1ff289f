"""`SafetensorsFile` and `SafetensorsShards`: tensors of safetensors files, read on demand by mmap.

The header is checked here before the `safetensors` library sees the file, so that a damaged file
ends in a `ValueError` that names the file and the tensor.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open

# Bytes per element. Formats below one byte are left out: nothing here can compute with them.
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32", "F64")

# The header of a model with 100,000 tensors takes about 12 MB.
MAX_HEADER_BYTES = 32 << 20


class SafetensorsFile(Mapping[str, torch.Tensor]):
    """One file; `file[name]` reads one tensor in its stored dtype."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = _checked_header(path)
        try:
            self._handle = safe_open(path, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        try:
            return self._handle.get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{self.path}: tensor {name!r}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class SafetensorsShards(Mapping[str, torch.Tensor]):
    """The shards that an index file lists."""

    def __init__(self, index_path: Path) -> None:
        weight_map = _read_json(index_path.read_bytes(), index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index_path}: no weight_map")
        files: dict[str, SafetensorsFile] = {}
        for name, shard in weight_map.items():
            # A shard lies next to its index: an untrusted index must not reach other folders.
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{index_path}: tensor {name!r} is in a bad shard {shard!r}")
            if shard not in files:
                path = index_path.parent / shard
                if not path.is_file():
                    raise ValueError(f"{index_path}: shard {shard!r} is missing")
                files[shard] = SafetensorsFile(path)
            if name not in files[shard]:
                raise ValueError(f"{index_path}: shard {shard!r} has no tensor {name!r}")
        self._files = {name: files[shard] for name, shard in weight_map.items()}
        self.shapes = {name: file.shapes[name] for name, file in self._files.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _checked_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the floating-point tensors, after every claim of the header has been checked
    against the size of the file."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
                raise ValueError(
                    f"{path}: header of {header_bytes} bytes in a file of {file_bytes} bytes"
                )
            header = _read_json(file.read(header_bytes), path)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error

    data_bytes = file_bytes - 8 - header_bytes
    header.pop("__metadata__", None)
    spans = []
    shapes = {}
    for name, entry in header.items():
        begin, end, shape, dtype = _checked_entry(path, name, entry)
        if not begin <= end <= data_bytes:
            raise ValueError(
                f"{path}: tensor {name!r} spans bytes {begin} to {end} of {data_bytes}; "
                "is the file truncated?"
            )
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
        if end - begin != expected:
            raise ValueError(
                f"{path}: tensor {name!r} has {end - begin} bytes, {dtype} {shape} needs {expected}"
            )
        spans.append((begin, end, name))
        if dtype in FLOATS:
            shapes[name] = tuple(shape)
    spans.sort()
    for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
        if begin < end:
            raise ValueError(f"{path}: tensors {first!r} and {second!r} overlap")
    return shapes


def _checked_entry(path: Path, name: str, entry: Any) -> tuple[int, int, list[int], str]:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: tensor {name!r} is described by {entry!r:.80}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r:.80}")
    if not _is_sizes(shape) or len(shape) > 8:
        raise ValueError(f"{path}: tensor {name!r} has shape {shape!r:.80}")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{path}: tensor {name!r} has data_offsets {offsets!r:.80}")
    return offsets[0], offsets[1], shape, dtype


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 63 for v in value
    )
