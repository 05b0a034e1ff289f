"""Questions of reasoning-gym: a hundred generators of tasks, each with its own checker."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from parallel_decode.questions.question import Question
from parallel_decode.reasoning.extract import boxed, last_number, pattern

tagged = pattern(r"(?s)<answer>\s*(.*?)\s*</answer>")
FULL_SCORE = 1.0


def gym_questions(name: str, count: int, seed: int = 0) -> list[Question]:
    """The first `count` of a task, always the same.

    An answer is what stands in <answer> tags, else what is boxed, else the last number, or, where
    the task's answers are no numbers, the last line. It is right where the task's checker gives it
    the full score.

    Raises:
        ValueError: the package is not installed, or has no such task.
    """
    try:
        library = import_module("reasoning_gym")  # seconds: only where it is asked for
    except ImportError as error:
        raise ValueError(
            f"gym:{name} needs reasoning-gym: pip install 'parallel_decode[gym]' ({error})"
        ) from error
    try:
        data = library.create_dataset(name, size=count, seed=seed)
    except ValueError as error:
        raise ValueError(f"reasoning-gym has no task {name!r}: {error}") from error
    entries = [data[number] for number in range(count)]
    numbers = all(last_number(str(e["answer"])) == str(e["answer"]) for e in entries)
    final = _final(last_number if numbers else _last_line)
    return [Question(e["question"], name, final, _grader(data, e)) for e in entries]


def _grader(data: Any, entry: dict[str, Any]) -> Callable[[str], bool]:
    return lambda answer: bool(data.score_answer(answer, entry) >= FULL_SCORE)


def _final(otherwise: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda text: tagged(text) or boxed(text) or otherwise(text)


def _last_line(text: str) -> str | None:
    lines = text.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
