"""`GroupQuantized`: a weight in 8 or 4 bits, with a scale for every 32 inputs of an output."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel_decode import _C

GROUP_SIZE: int = _C.GROUP_SIZE
"""Inputs that share a scale."""

# ggml's types: bytes and inputs of a block. https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
GGML_BLOCKS = {"Q8_0": (34, 32), "Q4_0": (18, 32), "Q4_1": (20, 32), "Q4_K": (144, 256)}


@dataclass(frozen=True)
class GroupQuantized:
    """w[n, k] = scale[n, g] * values[n, k] + minimum[n, g] with g = k // GROUP_SIZE.

    values: [out_features, groups * GROUP_SIZE] int8, zero beyond in_features; in [-127, 127]
        where there is no minimum, else in [0, 15].
    scale, minimum: [out_features, groups] fp16, or no minimum.
    bits: of the storage, 8 or 4; values with a minimum fit both.
    """

    values: Tensor
    scale: Tensor
    minimum: Tensor | None
    in_features: int
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.in_features

    @property
    def nbytes(self) -> int:
        """Of the tensors as they are here, whatever `bits` says of the storage."""
        parts = (self.values, self.scale, self.minimum)
        return sum(part.nbytes for part in parts if part is not None)

    @staticmethod
    def from_float(weight: Tensor, bits: int) -> "GroupQuantized":
        """Rounds to the nearest: 8 bits symmetrically, as ggml's Q8_0; 4 bits between the
        smallest and the largest weight of a group, as its Q4_1.

        ValueError where a group's scale is beyond fp16.
        """
        out_features, in_features = weight.shape
        padding = -in_features % GROUP_SIZE
        groups = F.pad(weight.float(), (0, padding)).view(out_features, -1, GROUP_SIZE)
        if bits == 8:
            scale, minimum = (groups.abs().amax(-1) / 127).half(), None
            shifted, lowest, highest = groups, -127, 127
        elif bits == 4:
            minimum = groups.amin(-1).half()
            shifted = groups - minimum.float().unsqueeze(-1)
            scale = (shifted.amax(-1) / 15).half()
            lowest, highest = 0, 15
        else:
            raise ValueError(f"weights are quantised to 8 or 4 bits, got {bits}")
        if not scale.isfinite().all() or (minimum is not None and not minimum.isfinite().all()):
            raise ValueError("a weight is not finite, or too large for a scale of 16 bits")
        step = scale.float().unsqueeze(-1)
        values = torch.where(step > 0, shifted / step, torch.zeros_like(shifted))
        values = values.round_().clamp_(lowest, highest).to(torch.int8)
        return GroupQuantized(values.flatten(1), scale, minimum, in_features, bits)

    @staticmethod
    def from_ggml(kind: str, raw: np.ndarray) -> "GroupQuantized":
        """raw: [out_features, bytes of a row] uint8, blocks of `kind` in GGML_BLOCKS.

        Nothing is rounded but the scales of Q4_K, which are products, to fp16.
        """
        block_bytes, block_size = GGML_BLOCKS[kind]
        rows = len(raw)
        blocks = raw.reshape(rows, -1, block_bytes)
        in_features = blocks.shape[1] * block_size

        def halves(start: int) -> np.ndarray:
            return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0]

        minimum: np.ndarray | None
        if kind == "Q8_0":
            values, scale, minimum = blocks[..., 2:].view(np.int8), halves(0), None
        elif kind == "Q4_0":
            values, scale = _nibbles(blocks[..., 2:]), halves(0)
            minimum = scale * np.float16(-8)
        elif kind == "Q4_1":
            values, scale, minimum = _nibbles(blocks[..., 4:]), halves(0), halves(2)
        else:
            scales, minima = _six_bits(blocks[..., 4:16])
            scale = (halves(0)[..., None].astype(np.float32) * scales).astype(np.float16)
            minimum = -(halves(2)[..., None].astype(np.float32) * minima).astype(np.float16)
            values = _nibbles(blocks[..., 16:].reshape(rows, -1, 4, 32))
        return GroupQuantized(
            torch.from_numpy(np.ascontiguousarray(values).reshape(rows, in_features)),
            torch.from_numpy(np.ascontiguousarray(scale).reshape(rows, -1)),
            None if minimum is None else torch.from_numpy(minimum.reshape(rows, -1)),
            in_features,
            8 if kind == "Q8_0" else 4,
        )

    def dequantize(self) -> Tensor:
        """[out_features, in_features] fp32."""
        groups = self.values.float().view(len(self.values), -1, GROUP_SIZE)
        groups = groups * self.scale.float().unsqueeze(-1)
        if self.minimum is not None:
            groups = groups + self.minimum.float().unsqueeze(-1)
        return groups.flatten(1)[:, : self.in_features]

    @staticmethod
    def cat(parts: "Sequence[GroupQuantized]", bits: int) -> "GroupQuantized":
        """The outputs of several weights below each other, stored in `bits` if values fit them.

        Where only some have a minimum, these are rounded once more: all get 8 bits without one.
        """
        minima = [part.minimum for part in parts if part.minimum is not None]
        if len(minima) < len(parts):
            bits = 8
            if minima:
                parts = [
                    part
                    if part.minimum is None
                    else GroupQuantized.from_float(part.dequantize(), 8)
                    for part in parts
                ]
                minima = []
        return GroupQuantized(
            torch.cat([part.values for part in parts]),
            torch.cat([part.scale for part in parts]),
            torch.cat(minima) if minima else None,
            parts[0].in_features,
            bits,
        )


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[..., n] bytes -> [..., 2 n] int8: the low halves, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).view(np.int8)


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 12 bytes of Q4_K that hold eight scales and eight minima of six bits each."""
    low, high, mixed = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=-1)
    minima = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=-1)
    return scales, minima


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as the integer products see them.

    x: [rows, n] -> values [rows, groups, GROUP_SIZE], whole numbers in [-127, 127] in x's dtype,
    and scale [rows, groups]; scale = max |x| / 127, values = round(x / scale).
    """
    groups = F.pad(x.float(), (0, -x.shape[1] % GROUP_SIZE)).view(len(x), -1, GROUP_SIZE)
    scale = groups.abs().amax(-1) / 127
    inverse = torch.where(scale > 1e-30, 1 / scale, torch.zeros_like(scale))
    values = (groups * inverse.unsqueeze(-1)).round().clamp(-127, 127)
    return values.to(x.dtype), scale.to(x.dtype)
