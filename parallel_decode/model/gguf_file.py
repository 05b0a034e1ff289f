"""`GgufFile`: metadata and tensors of a GGUF file (versions 2 and 3, little endian), by mmap.

The file is untrusted. One bounded pass reads its header: every count, length and offset is checked
against the bytes that are left before anything is allocated or sliced. `gguf.GGUFReader` trusts
these fields (and needs two seconds for SmolLM2's vocabulary), so of the `gguf` package only the
dequantisation is used. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from parallel_decode.kernels import GroupQuantized
from parallel_decode.kernels.group_quantized import GGML_BLOCKS

QUANT_TYPES = {
    kind.value: kind
    for kind in (
        GGMLQuantizationType.F32,
        GGMLQuantizationType.F16,
        GGMLQuantizationType.BF16,
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.Q4_0,
        GGMLQuantizationType.Q4_1,
        GGMLQuantizationType.Q4_K,
        GGMLQuantizationType.Q5_K,
        GGMLQuantizationType.Q6_K,
    )
}

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies; `shape` is outermost dimension first, as in torch."""

    quant_type: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class GgufFile:
    """`fields`: metadata by key; strings, numbers, lists of strings, and numpy arrays for arrays
    of numbers. `infos`: the tensors by GGUF name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data: Final = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        cursor = _Cursor(self._data, path)
        if cursor.take(4) != b"GGUF":
            raise cursor.fail("not a GGUF file")
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise cursor.fail(f"GGUF version {version} is not supported, only 2 and 3")
        # A metadata entry takes 13 bytes or more, a tensor 24 or more.
        num_tensors, num_fields = cursor.count(24), cursor.count(13)
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = cursor.string()
            if key in self.fields:
                raise cursor.fail(f"metadata key {key!r:.80} appears twice")
            self.fields[key] = cursor.value(cursor.scalar("I"))
        self.infos = self._read_infos(cursor, num_tensors)
        self.shapes = {name: info.shape for name, info in self.infos.items()}

    def _read_infos(self, cursor: "_Cursor", num_tensors: int) -> dict[str, TensorInfo]:
        infos: dict[str, TensorInfo] = {}
        for _ in range(num_tensors):
            name = cursor.string()
            if name in infos:
                raise cursor.fail(f"tensor {name!r:.80} appears twice")
            num_dims = cursor.scalar("I")
            if not 1 <= num_dims <= 4:
                raise cursor.fail(f"tensor {name!r:.80} has {num_dims} dimensions")
            dims = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims))
            quant_type, offset = cursor.scalar("I"), cursor.scalar("Q")
            infos[name] = TensorInfo(quant_type, dims[::-1], offset, 0)

        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise cursor.fail(f"alignment is {alignment!r:.80}")
        if alignment & (alignment - 1):
            raise cursor.fail(f"alignment {alignment} is not a power of two")
        start = -(-cursor.position // alignment) * alignment
        placed = {n: self._placed(n, info, start, alignment) for n, info in infos.items()}
        spans = sorted((i.offset, i.offset + i.num_bytes, name) for name, i in placed.items())
        for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
            if begin < end:
                raise cursor.fail(f"tensors {first!r:.80} and {second!r:.80} overlap")
        return placed

    def _placed(self, name: str, info: TensorInfo, start: int, alignment: int) -> TensorInfo:
        kind = QUANT_TYPES.get(info.quant_type)
        if kind is None:
            supported = ", ".join(k.name for k in QUANT_TYPES.values())
            raise ValueError(
                f"{self.path}: tensor {name!r:.80} has ggml type {info.quant_type}, "
                f"which is not supported; supported: {supported}"
            )
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in info.shape or info.shape[-1] % block_size:
            raise ValueError(
                f"{self.path}: tensor {name!r:.80} of shape {info.shape} is not made of "
                f"{kind.name} blocks of {block_size}"
            )
        num_bytes = math.prod(info.shape) // block_size * block_bytes
        if info.offset % alignment or start + info.offset + num_bytes > len(self._data):
            raise ValueError(
                f"{self.path}: tensor {name!r:.80} spans {num_bytes} bytes from "
                f"{start + info.offset} in a file of {len(self._data)}; is the file truncated?"
            )
        return TensorInfo(info.quant_type, info.shape, start + info.offset, num_bytes)

    def raw(self, name: str) -> np.ndarray:
        """The blocks of one tensor: [..., bytes of a row] uint8, not to be written to."""
        info = self.infos[name]
        raw = np.frombuffer(self._data, np.uint8, info.num_bytes, info.offset)
        return raw.reshape(*info.shape[:-1], -1)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, dequantised to fp32."""
        info = self.infos[name]
        with np.errstate(all="ignore"):  # a damaged scale may be inf or nan
            values = dequantize(self.raw(name), QUANT_TYPES[info.quant_type])
        # F32 comes back as a view of the read-only map.
        owned = values if values.flags.writeable else values.copy()
        return torch.from_numpy(owned.reshape(info.shape))


class GgufTensors(Mapping[str, torch.Tensor]):
    """The tensors of a GGUF file under their Hugging Face names and in HF's row order.

    llama.cpp rotates neighbouring pairs of dimensions for its `llama` architecture (which Mistral
    files carry too) and permutes the rows of q and k for it; HF rotates halves. The permutation is
    undone here: [heads, head_dim / 2, 2] back to [heads, 2, head_dim / 2].
    """

    def __init__(self, file: GgufFile, num_heads: int, num_kv_heads: int) -> None:
        self._file = file
        self._heads: dict[str, int] = {}
        if file.fields.get("general.architecture") == "llama":
            self._heads = {"self_attn.q_proj": num_heads, "self_attn.k_proj": num_kv_heads}
        self._names = {hf_name(name): name for name in file.infos}
        self.shapes = {hf: file.shapes[name] for hf, name in self._names.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._file.read(self._names[name])
        order = self._row_order(name, len(tensor))
        return tensor if order is None else tensor[order]

    def group_quantized(self, name: str) -> GroupQuantized | None:
        """The tensor as the file holds it, or None where that is not 8 or 4 bits a value."""
        kind = QUANT_TYPES[self._file.infos[self._names[name]].quant_type].name
        if kind not in GGML_BLOCKS:
            return None
        raw = self._file.raw(self._names[name])
        order = self._row_order(name, len(raw))
        return GroupQuantized.from_ggml(kind, raw if order is None else raw[order.numpy()])

    def bits(self, name: str) -> float:
        """Bits a value in the file, scales included."""
        info = self._file.infos[self._names[name]]
        return 8 * info.num_bytes / math.prod(info.shape)

    def _row_order(self, name: str, num_rows: int) -> torch.Tensor | None:
        for projection, heads in self._heads.items():
            if projection in name:
                if num_rows % (2 * heads):
                    raise ValueError(f"{self._file.path}: {name} does not hold {heads} heads")
                pairs = torch.arange(num_rows).view(heads, num_rows // heads // 2, 2)
                return pairs.transpose(1, 2).reshape(-1)
        return None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if match := re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name):
        index, part, kind = match.groups()
        if part in LAYER_NAMES:
            return f"model.layers.{index}.{LAYER_NAMES[part]}.{kind}"
    return TOP_NAMES.get(name, name)


class _Cursor:
    """Reads values one after the other and never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def fail(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message} (at byte {self.position})")

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > len(self.data):
            raise self.fail(f"{num_bytes} more bytes in a file of {len(self.data)}; truncated?")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, item_bytes: int) -> int:
        """A 64-bit count of items that take at least `item_bytes` each."""
        count = self.scalar("Q")
        if count * item_bytes > len(self.data) - self.position:
            raise self.fail(f"{count} items in a file of {len(self.data)} bytes; truncated?")
        return count

    def string(self) -> str:
        try:
            return self.take(self.count(1)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"a string is not UTF-8: {error.reason}") from error

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise self.fail(f"metadata of unknown type {kind}")
        item = self.scalar("I")
        if item == STRING:
            return [self.string() for _ in range(self.count(8))]
        if item not in SCALARS:
            raise self.fail(f"metadata array of unsupported type {item}")
        dtype = np.dtype("<" + SCALARS[item].replace("?", "B"))
        count = self.count(dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)
