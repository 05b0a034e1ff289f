"""The fork-join format: the model names the sub-chains, branches compute them, it reduces them.

The question is followed by `<parallel>`. Where it has independent sub-chains, the model writes
`<fork>`, the name of the value that each begins with, and `<go>`. Each branch is given `<path>`,
its name and a line end, and writes its steps and `</path>`. They do not see each other and begin at
the same position. `<join>` comes behind the longest, sees them all, and the model goes on to the
answer. Where there is nothing to fork, it writes the steps as they are.

A path is called by where it begins because its first step follows from that name as the others do
from the step before.
"""

from random import Random

from branching_text import END, BranchingText, Encode

from parallel_decode.reasoning.fork_join.reasoner_format import NAMES, PARALLEL
from parallel_decode.tasks import TASKS, Problem
from parallel_decode.tasks.program import Program

TAGS = (PARALLEL, *NAMES.values())


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    encode: Encode,
    rng: Random,
) -> None:
    view = text.append(encode(PARALLEL), question, learned=False)
    program = Program.parse(problem.question)
    lines = TASKS[problem.task].solution(problem, rng).split("\n")
    if len(program.groups) == 1:
        text.append(encode("\n".join(lines) + END), view)
        return
    *chains, _ = program.groups
    # Each name by itself: together they could be another token.
    names = [token for chain in chains for token in encode(chain[0].name)]
    view = text.append([*encode(NAMES["open"]), *names, *encode(NAMES["go"])], view)
    paths = []
    for chain in chains:
        count = sum(bool(statement.op) for statement in chain)
        steps, lines = lines[:count], lines[count:]
        path = text.append(encode(f"{NAMES['path']}{chain[0].name}\n"), view, learned=False)
        paths.append(text.append(encode("\n".join(steps) + NAMES["close"]), path))
    union = view + [number for path in paths for number in path[len(view) :]]
    joined = text.append(encode(NAMES["join"] + "\n"), union, learned=False)
    text.append(encode("\n".join(lines) + END), joined)
