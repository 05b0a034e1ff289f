"""Questions of a file of JSON lines, as GSM8K and MATH are handed around."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from parallel_decode.questions.question import Question
from parallel_decode.reasoning.extract import boxed, last_number
from parallel_decode.reasoning.symbolic import merged


def file_questions(path: Path, count: int) -> list[Question]:
    r"""The first `count` questions of a file; each line is an object with "question" and "answer".

    The right answer is what stands behind "####", as in GSM8K, or what is boxed, as in MATH, or its
    last number, or all of it. That of a text is what is boxed, else the last number; one that is
    equal as an expression is right: 0.5 for \frac{1}{2}.

    Raises:
        ValueError: a line is no such object, or there are too few.
    """
    questions: list[Question] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if len(questions) == count:
                break
            if line.strip():
                questions.append(_question(path, number, line))
    if len(questions) < count:
        raise ValueError(f"{path} has {len(questions)} questions, {count} are asked for")
    return questions


def _question(path: Path, number: int, line: str) -> Question:
    try:
        entry = json.loads(line)
        prompt, answer = str(entry["question"]), str(entry["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}:{number} is no object with "question" and "answer"') from error
    told = answer.rpartition("####")[2]
    return Question(prompt, path.stem, _final, _grader(_final(told) or told.strip()))


def _grader(wanted: str) -> Callable[[str], bool]:
    @lru_cache(maxsize=256)
    def grade(answer: str) -> bool:
        return answer == wanted or merged([wanted, answer])[1] == wanted

    return grade


def _final(text: str) -> str | None:
    """What is boxed, else the last number."""
    return boxed(text) or last_number(text)
