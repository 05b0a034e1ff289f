"""`Classifier`: the head of a reward model or a verifier, from the tensors `score.*` of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from parallel_decode.kernels import CpuOps

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
NAME = re.compile(r"score\.(?:(\d)\.)?(weight|bias)")
MAX_LAYERS = 4


class Classifier:
    """Hidden states to one logit a label: a linear layer, or several with ReLU between them.

    A row has the same bits alone and in any batch.

    Args:
        layers: (weight [out, in], bias [out] or None) of each layer.
        labels: names of the last layer's outputs.
        problem_type: "regression" (the logit is the score), "single_label_classification" (softmax
            over the labels) or "multi_label_classification" (a sigmoid for each).
        of_tokens: whether it was trained on tokens within a text, such as those that end a step,
            and not on the last one alone.

    Raises:
        ValueError: shapes that do not fit each other, or a value that is not finite.
    """

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor | None]],
        labels: tuple[str, ...],
        problem_type: str = "regression",
        of_tokens: bool = False,
    ) -> None:
        if problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {PROBLEM_TYPES}, got {problem_type!r}")
        if not 1 <= len(layers) <= MAX_LAYERS:
            raise ValueError(f"a classifier has 1 to {MAX_LAYERS} layers, got {len(layers)}")
        width = None
        for number, (weight, bias) in enumerate(layers):
            shape = tuple(weight.shape)
            if len(shape) != 2 or 0 in shape or (width is not None and shape[1] != width):
                wanted = "[out, in]" if width is None else f"[out, {width}]"
                raise ValueError(f"score layer {number} has shape {shape}, expected {wanted}")
            if bias is not None and tuple(bias.shape) != shape[:1]:
                raise ValueError(
                    f"bias of score layer {number} has shape {tuple(bias.shape)},"
                    f" expected {shape[:1]}"
                )
            if not all(bool(t.isfinite().all()) for t in (weight, bias) if t is not None):
                raise ValueError(f"score layer {number} holds a value that is not finite")
            width = shape[0]
        if len(labels) != width or len(set(labels)) != width:
            raise ValueError(f"{width} outputs of the score layer, but the labels {labels}")
        self.labels = tuple(labels)
        self.problem_type = problem_type
        self.of_tokens = of_tokens
        self.hidden_size = int(layers[0][0].shape[1])
        self._ops = CpuOps()
        self._layers = [
            self._ops.pack_linear(
                weight.float().contiguous(), None if bias is None else bias.float()
            )
            for weight, bias in layers
        ]

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], hidden_size: int
    ) -> Classifier:
        """From `score.weight` [num_labels, hidden_size], as transformers writes it, or
        `score.0.weight`, `score.2.weight`, ..., a stack with ReLU between.

        Args:
            config: of the checkpoint: its keys architectures, id2label and problem_type are read.
            hidden_size: values of a token that it reads.

        Raises:
            ValueError: see above; or a tensor is missing.
        """
        parts = {name: found for name in tensors if (found := NAME.fullmatch(name))}
        numbers = sorted({int(found[1] or 0) for found in parts.values()})
        dotted = any(found[1] for found in parts.values())
        if not numbers or numbers != list(range(0, 2 * len(numbers), 2)):
            raise ValueError(f"no classification head: tensors {sorted(parts) or 'score.*'}")
        layers = []
        for number in numbers:
            prefix = f"score.{number}." if dotted else "score."
            weight, bias = (tensors.get(prefix + part) for part in ("weight", "bias"))
            if weight is None:
                raise ValueError(f"tensor '{prefix}weight' is missing")
            layers.append((weight, bias))
        if layers[0][0].shape[-1] != hidden_size:
            raise ValueError(
                f"the score layer reads {layers[0][0].shape[-1]} values of a token that has"
                f" {hidden_size}"
            )
        labels = _labels(config.get("id2label"), int(layers[-1][0].shape[0]))
        default = "regression" if len(labels) == 1 else "single_label_classification"
        return cls(
            layers, labels, config.get("problem_type") or default, not is_of_sequence(config)
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [n, hidden_size] -> [n, num_labels] fp32 on the CPU."""
        if hidden.shape[-1] != self.hidden_size:
            raise ValueError(
                f"the head reads {self.hidden_size} values of a token, this model gives"
                f" {hidden.shape[-1]}"
            )
        x = hidden.to("cpu", torch.float32).contiguous()
        for number, layer in enumerate(self._layers):
            x = self._ops.linear(x.relu() if number else x, layer)
        return x

    def scores(self, hidden: Tensor, label: int | str | None = None) -> Tensor:
        """What it says of one label: hidden [n, hidden_size] -> [n].

        A logit for "regression", else a probability.

        Args:
            label: its number or name; None for the last one, which in verifiers of two labels is
                the good one.
        """
        logits = self.logits(hidden)
        column = self.column(label)
        if self.problem_type == "regression":
            return logits[:, column]
        if self.problem_type == "multi_label_classification":
            return logits[:, column].sigmoid()
        return logits.softmax(-1)[:, column]

    def column(self, label: int | str | None) -> int:
        """The number of a label."""
        if label is None:
            return len(self.labels) - 1
        if label in self.labels:
            return self.labels.index(str(label))
        if isinstance(label, int) and 0 <= label < len(self.labels):
            return label
        raise ValueError(f"no label {label!r}: the classifier has {', '.join(self.labels)}")


def is_of_sequence(config: Mapping[str, Any]) -> bool:
    """Whether the config is that of a classifier of whole texts."""
    return _names(config, "ForSequenceClassification")


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether the config is that of a classifier of texts or tokens."""
    kinds = ("ForSequenceClassification", "ForTokenClassification", "ForProcessRewardModel")
    return any(_names(config, kind) for kind in kinds)


def _names(config: Mapping[str, Any], kind: str) -> bool:
    names = config.get("architectures")
    return isinstance(names, list) and any(isinstance(n, str) and n.endswith(kind) for n in names)


def _labels(id2label: Any, count: int) -> tuple[str, ...]:
    """Of a config's id2label; numbers where it has none or another count."""
    if isinstance(id2label, dict) and len(id2label) == count:
        found = [id2label.get(str(number)) for number in range(count)]
        if all(isinstance(label, str) for label in found) and len(set(found)) == count:
            return tuple(map(str, found))
    return tuple(map(str, range(count)))
