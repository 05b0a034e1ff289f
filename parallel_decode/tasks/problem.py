"""A question with its exact answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One generated question.

    question: the prompt exactly as the model is trained on it; it ends with a newline.
    answer: the value to be reached. A task decides in `Task.grade` what counts as reaching it.
    """

    task: str
    difficulty: int
    question: str
    answer: str
