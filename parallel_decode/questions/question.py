"""A question, how its answers are read, and who says whether they are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.tasks import Problem


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        prompt: what the model gets, as text or token ids.
        kind: questions of one kind are reported together.
        extract: text to the answer that is voted on.
        grade: whether such an answer is right. Nothing but the score may ask it.
        problem: of a bundled task.
    """

    prompt: str | Sequence[int]
    kind: str
    extract: Extractor
    grade: Callable[[str], bool]
    problem: Problem | None = None

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        """What each text votes for."""
        return answers_of(self.extract, texts)

    def is_right(self, answer: str | None) -> bool:
        return answer is not None and self.grade(answer)
