"""The format of workers who see each other: each computes a sub-chain, then all reduce the ends.

`<team>` follows the question. The first of the workers begins with `<worker>1` and a line end, and
so on; each has a range of positions of its own. They write a token at the same time and see what
the others had written before it. The steps of the reduction need values that only others compute.
"""

from random import Random

from branching_text import END, BranchingText, Encode

from parallel_decode.reasoning.interaction.reasoner_format import TEAM, WORKER, WORKER_SPAN
from parallel_decode.tasks import TASKS, Problem
from parallel_decode.tasks.program import Program

TAGS = (TEAM, WORKER)
MOST_WORKERS = 4


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    encode: Encode,
    rng: Random,
) -> None:
    """Nothing where there is nothing to split, or too much for the workers and their ranges."""

    *chains, reduction = Program.parse(problem.question).groups
    if not 2 <= len(chains) <= MOST_WORKERS:
        return
    lines = TASKS[problem.task].solution(problem, rng).split("\n")
    shared = lines[-len(reduction) - 1 :]
    leads, writings = [], []
    for number, chain in enumerate(chains, 1):
        count = sum(bool(statement.op) for statement in chain)
        steps, lines = lines[:count], lines[count:]
        leads.append(encode(f"{WORKER}{number}\n"))
        writings.append([*leads[-1], *encode("\n".join(steps + shared) + END)])
    if max(map(len, writings)) > WORKER_SPAN:
        return
    root = text.append(encode(TEAM), question, learned=False)
    start = text.end(root)
    own: list[list[int]] = [[] for _ in chains]
    for step in range(max(map(len, writings))):
        before = [list(numbers) for numbers in own]
        for worker, writing in enumerate(writings):
            if step == len(writing):
                continue
            others = [n for other, numbers in enumerate(before) if other != worker for n in numbers]
            view = text.append(
                [writing[step]],
                [*others, *root, *own[worker]],
                start + worker * WORKER_SPAN + step,
                learned=step >= len(leads[worker]),
            )
            own[worker].append(view[-1])
