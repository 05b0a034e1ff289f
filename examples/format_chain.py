"""The format of the bundled reasoner, the control of the others: one step after the other."""

from random import Random

from branching_text import BranchingText
from tokenizers import Tokenizer

from parallel_decode.tasks import TASKS, Problem

TAGS: tuple[str, ...] = ()


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    tokenizer: Tokenizer,
    rng: Random,
) -> None:
    trace = TASKS[problem.task].solution(problem, rng)
    end = tokenizer.token_to_id("<eos>")
    text.append([*tokenizer.encode(trace, add_special_tokens=False).ids, end], question)
