"""What every task offers: problems, gold traces, exact verdicts."""

from abc import ABC, abstractmethod
from random import Random

from .problem import Problem

ANSWER = "answer "


def split_steps(text: str) -> list[str]:
    """The lines of a trace; the newline is the step delimiter."""
    stripped = text.rstrip("\n")
    return stripped.split("\n") if stripped else []


class Task(ABC):
    """A family of problems. A trace is step lines and, last, a line `answer X`.

    The verdict on an answer depends on the string from `extract_answer` alone, so the winner of a
    vote over such strings is graded like the answer of a single trace.
    """

    name: str
    difficulties: tuple[int, ...]

    @abstractmethod
    def generate(self, rng: Random, difficulty: int) -> Problem: ...

    @abstractmethod
    def solution(self, problem: Problem, rng: Random) -> str:
        """A gold trace; `rng` picks one where several are right."""

    @abstractmethod
    def canonical(self, problem: Problem) -> str:
        """Equal for problems that differ only in presentation; the splits hash it."""

    @abstractmethod
    def check_steps(self, problem: Problem, text: str) -> list[bool]:
        """One exact verdict for each line of `text`, the answer line included."""

    @abstractmethod
    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether an extracted answer is right."""

    def extract_answer(self, text: str) -> str | None:
        """The canonical answer string that votes are counted on; None if the trace has none."""
        lines = split_steps(text)
        if not lines or not lines[-1].startswith(ANSWER):
            return None
        return self.normalise(lines[-1].removeprefix(ANSWER).strip())

    @abstractmethod
    def normalise(self, answer: str) -> str | None:
        """One string for all spellings of the same answer; None if it is malformed."""

    def check(self, problem: Problem, text: str) -> bool:
        answer = self.extract_answer(text)
        return answer is not None and self.grade(problem, answer)

    def _require(self, difficulty: int) -> None:
        if difficulty not in self.difficulties:
            raise ValueError(f"{self.name} has difficulties {self.difficulties}, not {difficulty}")
