"""`Checkpoint`: what a search was told so far, as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from parallel_decode.engine import Branch, Extend, History, Operation, Record, Score, Top


@dataclass
class Checkpoint:
    """What a program has been told so far. It decides by nothing else, so that this brings back its
    tree, its random numbers and its place in the search.

    Attributes:
        model: what the engine is, to know it again.
        method: the method with its settings.
        question: as it was asked.
        seed: of the program's draws, from the first step on.
        says: the likeliest tokens after the question with their log-probabilities.
        answers: for each time that the program went on, the operations that were done since then,
            each as [number within the request, name, paths of its branches, result].
    """

    model: dict[str, Any]
    method: dict[str, Any]
    question: str | list[int]
    seed: int | None = None
    says: list[list[float]] = field(default_factory=list)
    answers: list[list[Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain types only, no NaN."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Checkpoint:
        """What `as_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        if sorted(data) != sorted(names):
            raise ValueError(f"a checkpoint has the keys {names}, got {list(data)}")
        return cls(**data)


def stored(operation: Operation, lengths: Sequence[int]) -> Any:
    """The result of an operation as plain data."""
    if isinstance(operation, Extend):
        return [_row(b, n) for b, n in zip(operation.branches, lengths, strict=True)]
    if isinstance(operation, Score) and isinstance(operation.result, list):
        return [_plain_value(value) for value in operation.result]
    return None


def _row(branch: Branch, begin: int) -> list[Any]:
    """What a branch got since it had `begin` tokens."""
    records = branch.records[begin - branch.prompt_length :]
    return [
        branch.tokens[begin:],
        [[*map(_plain_value, record[:3]), record.sampled, record.top] for record in records],
        branch.status,
        branch.finish_reason,
        branch.stop_string,
        branch.error,
    ]


def history(row: Sequence[Any]) -> History:
    """A row of a stored `Extend`."""
    tokens, records, *state = row
    return History(tokens, [_record(*record) for record in records], *state)


def _record(logprob: Any, entropy: Any, certainty: Any, sampled: bool, top: Any) -> Record:
    likeliest = None if top is None else Top(tuple(map(int, top[0])), tuple(map(float, top[1])))
    return Record(float(logprob), float(entropy), float(certainty), sampled, likeliest)


def _plain_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: their names stand for them."""
    if isinstance(value, torch.Tensor):
        return {"tensor": _plain_value(value.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"a head gave {value!r}, which can't be stored")


def value_of(data: Any) -> Any:
    """A stored number, list or tensor."""
    if isinstance(data, dict):
        dtype = getattr(torch, data["dtype"].removeprefix("torch."))
        return torch.tensor(value_of(data["tensor"]), dtype=dtype)
    if isinstance(data, list):
        return [value_of(item) for item in data]
    return float(data) if isinstance(data, str) else data


def plain(value: Any) -> Any:
    """Settings as JSON has them; of a function, its name. How a method guesses ahead is left out:
    it changes no result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value) if item.name != "speculation"]
        settings = {name: plain(getattr(value, name)) for name in names}
        return {"type": type(value).__name__, **settings}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return getattr(value, "__qualname__", type(value).__name__)


def require_same(what: str, before: Any, now: Any) -> None:
    """ValueError where two settings differ; it names the first that does."""
    if before == now:
        return
    name = what
    while isinstance(before, dict) and isinstance(now, dict):
        name = next(k for k in [*before, *now] if k not in now or before.get(k) != now.get(k))
        before, now = before.get(name), now.get(name)
    raise ValueError(f"the checkpoint is of another {what}: {name} was {before!r}, here {now!r}")
