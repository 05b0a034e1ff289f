"""`TrainedHeads`: heads that were trained to draft for one model, from a safetensors file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parallel_decode.model.checkpoint import ASSETS
from parallel_decode.model.config import MAX_WIDTH, ModelConfig
from parallel_decode.model.safetensors_file import SafetensorsFile

FILE_NAME = "heads.safetensors"
MAX_MEDUSA_HEADS = 16


@dataclass(frozen=True)
class TrainedHeads:
    """Tensors by their names without "eagle." and "medusa.", in their stored dtype.

    Attributes:
        path: of the file, for messages.
        eagle: of an `EagleHead`; empty where the file has none.
        medusa: "0.linear.weight", "0.linear.bias", "1.linear.weight" and so on.
    """

    path: Path
    eagle: Mapping[str, Tensor]
    medusa: Mapping[str, Tensor]

    @property
    def num_medusa_heads(self) -> int:
        return len(self.medusa) // 2

    @classmethod
    def load(cls, source: str | Path, config: ModelConfig) -> TrainedHeads:
        """Reads heads for a model of this configuration.

        Args:
            source: a folder with heads.safetensors, the file itself, or the name of a bundled
                model, "reasoner".
            config: of the model.

        Raises:
            ValueError: there is no such file, it is damaged, or a tensor is missing, unknown, of
                another shape than the model needs or not finite; the message names it.
        """
        path = _find(source)
        file = SafetensorsFile(path)
        shapes = dict(file.shapes)
        expected = dict(_expected(path, shapes, config))
        for name, shape in expected.items():
            if name not in shapes:
                raise ValueError(f"{path}: tensor {name!r} is missing")
            if shapes[name] != shape:
                raise ValueError(
                    f"{path}: tensor {name!r} has shape {shapes[name]}, the model needs {shape}"
                )
        unknown = sorted(shapes.keys() - expected.keys())
        if unknown:
            raise ValueError(f"{path}: tensor {unknown[0]!r} belongs to no head")
        if not expected:
            raise ValueError(f"{path}: no tensor of a head is there")
        parts: dict[str, dict[str, Tensor]] = {"eagle": {}, "medusa": {}}
        for name in expected:
            tensor = file[name]
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{path}: tensor {name!r} is not finite")
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        return cls(path, parts["eagle"], parts["medusa"])


def _find(source: str | Path) -> Path:
    path = Path(source)
    bundled = ASSETS / f"{source}-heads" / FILE_NAME
    if re.fullmatch(r"[\w-]+", str(source)) and bundled.is_file():
        return bundled
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"there are no trained heads at {str(source)!r}: examples/train_heads.py makes some"
        )
    return path


def _expected(
    path: Path, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the heads that a file has something of."""
    hidden, head_dim = config.hidden_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
    if any(name.startswith("eagle.") for name in shapes):
        # The width of its MLP is its own.
        gate = shapes.get("eagle.mlp.gate_proj.weight", (0,))
        inner = gate[0] if len(gate) == 2 else 0
        if not 1 <= inner <= MAX_WIDTH:
            raise ValueError(f"{path}: tensor 'eagle.mlp.gate_proj.weight' has shape {gate}")
        yield "eagle.fusion.weight", (hidden, 2 * hidden)
        yield "eagle.self_attn.q_proj.weight", (q_width, hidden)
        yield "eagle.self_attn.k_proj.weight", (kv_width, hidden)
        yield "eagle.self_attn.v_proj.weight", (kv_width, hidden)
        yield "eagle.self_attn.o_proj.weight", (hidden, q_width)
        yield "eagle.mlp.gate_proj.weight", (inner, hidden)
        yield "eagle.mlp.up_proj.weight", (inner, hidden)
        yield "eagle.mlp.down_proj.weight", (hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm", "norm"):
            yield f"eagle.{norm}.weight", (hidden,)
    numbers = [int(n[1]) for name in shapes if (n := re.match(r"medusa\.(\d{1,9})\.", name))]
    count = 1 + max(numbers, default=-1)
    if count > MAX_MEDUSA_HEADS:
        raise ValueError(f"{path}: at most {MAX_MEDUSA_HEADS} Medusa heads, got {count}")
    for number in range(count):
        yield f"medusa.{number}.linear.weight", (hidden, hidden)
        yield f"medusa.{number}.linear.bias", (hidden,)
