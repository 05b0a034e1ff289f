"""A set of questions by its name."""

from __future__ import annotations

from pathlib import Path

from parallel_decode.questions.gym import gym_questions
from parallel_decode.questions.json_lines import file_questions
from parallel_decode.questions.question import Question
from parallel_decode.tasks import TASKS, Problem, load_split


def load_questions(spec: str, count: int) -> list[Question]:
    """The first `count` of them.

    Args:
        spec: "test", held-out problems of the bundled tasks; a name of these tasks; "gym:NAME", a
            task of reasoning-gym; or a file of JSON lines with "question" and "answer".

    Raises:
        ValueError: there is no such task or file, a line is no question, or there are too few.
    """
    if count < 1:
        raise ValueError(f"questions must be at least 1, got {count}")
    if spec == "test" or spec in TASKS:
        return _bundled(spec, count)
    if spec.startswith("gym:"):
        return gym_questions(spec.removeprefix("gym:"), count)
    path = Path(spec)
    if not path.is_file():
        raise ValueError(
            f"no questions {spec!r}: use test, {', '.join(TASKS)}, gym:NAME or a file of JSON lines"
        )
    return file_questions(path, count)


def _bundled(spec: str, count: int) -> list[Question]:
    problems: list[Problem] = []
    size = count
    # The mixed split holds every task; draw until there are enough of this one.
    while len(problems) < count:
        drawn = load_split("test", size, 0)
        problems = [p for p in drawn if spec in ("test", p.task)][:count]
        size *= 2
    return [_question(problem) for problem in problems]


def _question(problem: Problem) -> Question:
    task = TASKS[problem.task]

    def grade(answer: str) -> bool:
        return task.grade(problem, answer)

    return Question(problem.question, problem.task, task.extract_answer, grade, problem)
