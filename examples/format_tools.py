"""The formats of tool use: the reasoner writes which calls to make, and reads the answer off.

`<tools>` and a description of the tools follow the question. What comes behind does not see each
other:

- `<plan>`, then a call of each step, numbered, in which `$k` stands for the result of call k, and
  `join`; the results are shown, and the model writes the answer;
- `<turns>`, then all calls that need no other, and `</calls>`; with their results, the next ones;
- `<async>`, then calls as in a plan; results come between them, when they come, and the rest behind
  `<trap></trap>`.

The model is not taught to compute: the answer is the result of the last call.
"""

from random import Random

from branching_text import END, BranchingText, Encode

from parallel_decode.reasoning.tools.reasoner_format import (
    ASYNC,
    PLAN,
    SHOWN,
    TAGS,
    TOOLS,
    TURNS,
    reasoner_toolbox,
)
from parallel_decode.tasks import Problem
from parallel_decode.tasks.program import Program, Statement

__all__ = ["TAGS", "write"]


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    encode: Encode,
    rng: Random,
) -> None:
    program = Program.parse(problem.question)
    steps = [statement for statement in program if statement.op]
    number = {statement.name: at for at, statement in enumerate(steps, 1)}
    given = {s.name: s.left for s in program if not s.op}
    values = {name: str(value) for name, value in program.values.items()}
    places = {**given, **{name: f"${at}" for name, at in number.items()}}
    answer = encode(f"answer {problem.answer}{END}")
    told = text.append(encode(TOOLS + reasoner_toolbox().described()), question, learned=False)

    def results(statements: list[Statement], numbers: dict[str, int]) -> list[int]:
        shown = [SHOWN.fill(number=str(numbers[s.name]), text=values[s.name]) for s in statements]
        return encode("".join(shown))

    def call(statement: Statement, names: dict[str, str]) -> str:
        left, right = (names.get(x, x) for x in (statement.left, statement.right))
        worth = f"{left}{statement.op}{right} mod {program.modulus}"
        return f'compute {{"{statement.name}": "{worth}"}}'

    view = text.append(encode(PLAN), told, learned=False)
    for statement in steps:
        view = text.append(encode(f"{number[statement.name]}. {call(statement, places)}\n"), view)
    view = text.append(encode("join\n"), view)
    view = text.append(results(steps, number), view, learned=False)
    text.append(answer, view)

    view = text.append(encode(TURNS), told, learned=False)
    for level in levels(steps):
        calls = [f"<call>{call(statement, given | values)}</call>" for statement in level]
        view = text.append(encode("".join(calls) + "</calls>"), view)
        numbered = {statement.name: at for at, statement in enumerate(level, 1)}
        view = text.append(results(level, numbered), view, learned=False)
    text.append(answer, view)

    view = text.append(encode(ASYNC), told, learned=False)
    waiting: list[Statement] = []
    interrupted = rng.random()
    for statement in steps:
        view = text.append(encode(f"<call>{call(statement, places)}</call>"), view)
        waiting.append(statement)
        if rng.random() < interrupted:
            # Some that were called are done, the first ones or any; told by their numbers.
            done = list(range(rng.randint(1, len(waiting))))
            if rng.random() < 0.5:
                done = sorted(rng.sample(range(len(waiting)), len(done)))
            view = text.append(results([waiting[at] for at in done], number), view, learned=False)
            waiting = [s for at, s in enumerate(waiting) if at not in done]
    view = text.append(encode("<trap></trap>"), view)
    view = text.append(results(waiting, number), view, learned=False)
    text.append(answer, view)


def levels(steps: list[Statement]) -> list[list[Statement]]:
    """Each needs results of those before it alone."""
    level: dict[str, int] = {}
    for statement in steps:
        needs = (level.get(statement.left, 0), level.get(statement.right, 0))
        level[statement.name] = 1 + max(needs)
    deepest = max(level.values())
    return [[s for s in steps if level[s.name] == at] for at in range(1, deepest + 1)]
