"""Questions with exact answers: the bundled tasks, a JSONL file, or a task of reasoning-gym."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import reasoning_gym
except ImportError:
    reasoning_gym = None

from parallel_decode.reasoning.extract import Extractor, boxed, last_number
from parallel_decode.tasks import TASKS, load_split


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        prompt: what the model gets.
        kind: questions of one kind are reported together.
        extract: text to the answer that is voted on.
        grade: whether such an answer is right. Nothing but the score may ask it.
    """

    prompt: str
    kind: str
    extract: Extractor
    grade: Callable[[str], bool]


def load_questions(spec: str, count: int) -> list[Question]:
    """The first `count` of them.

    Args:
        spec: "test", held-out problems of the bundled tasks; a name of these tasks; "gym:NAME" of
            reasoning-gym; or a file of JSON lines with "question" and "answer", as of GSM8K, where
            the answer stands behind "####", or MATH, where it is boxed.

    Raises:
        ValueError: there is no such task or file, a line is no question, or there are too few.
    """
    if spec == "test" or spec in TASKS:
        return _bundled(spec, count)
    if spec.startswith("gym:"):
        return _gym(spec.removeprefix("gym:"), count)
    path = Path(spec)
    if not path.is_file():
        raise ValueError(
            f"no questions {spec!r}: use test, {', '.join(TASKS)}, gym:NAME or a file of JSON lines"
        )
    return _lines(path, count)


def _bundled(spec: str, count: int) -> list[Question]:
    problems, size = [], count
    while len(problems) < count:
        drawn = load_split("test", size, 0)
        problems = [p for p in drawn if spec in ("test", p.task)][:count]
        size *= 2
    return [
        Question(
            p.question, p.task, task.extract_answer, lambda a, p=p, task=task: task.grade(p, a)
        )
        for p in problems
        for task in [TASKS[p.task]]
    ]


def _gym(name: str, count: int) -> list[Question]:
    if reasoning_gym is None:
        raise ValueError(f"gym:{name} needs a package: pip install reasoning-gym")
    try:
        data = reasoning_gym.create_dataset(name, size=count, seed=0)
    except ValueError as error:
        raise ValueError(f"reasoning-gym has no task {name!r}: {error}") from error

    def question(entry: dict[str, Any]) -> Question:
        return Question(
            entry["question"],
            name,
            _final,
            lambda answer: data.score_answer(answer, entry) >= 1.0,
        )

    return [question(data[i]) for i in range(count)]


def _lines(path: Path, count: int) -> list[Question]:
    questions: list[Question] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if len(questions) == count:
                break
            try:
                entry = json.loads(line)
                prompt, answer = str(entry["question"]), str(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}:{number} is no object with "question" and "answer"'
                ) from error
            wanted = _final(answer.rpartition("####")[2]) or answer.strip()
            questions.append(Question(prompt, path.stem, _final, wanted.__eq__))
    if len(questions) < count:
        raise ValueError(f"{path} has {len(questions)} questions, {count} are asked for")
    return questions


def _final(text: str) -> str | None:
    """What is boxed, else the last number."""
    return boxed(text) or last_number(text)
