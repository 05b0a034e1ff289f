"""The format of the bundled reasoner, the control of the others: one step after the other."""

from random import Random

from branching_text import END, BranchingText, Encode

from parallel_decode.tasks import TASKS, Problem

TAGS: tuple[str, ...] = ()


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    encode: Encode,
    rng: Random,
) -> None:
    text.append(encode(TASKS[problem.task].solution(problem, rng) + END), question)
