"""The formats of a reader of candidates: it writes the solution, names a candidate, or judges one.

`<candidates>` follows the question, then each candidate: `<candidate>`, its number, a line end and
its steps. Behind the last one `<synthesis>` asks for the solution, `<choose>` for the number of the
first candidate with the most frequent answer. Behind a single solution `<check>` asks for one of
its own, and `<verify>` behind that whether the given one is right. The three do not see each other.

Candidates slip as the reasoner does: a result is wrong, or a value is read off the wrong name, and
what follows goes on from there. How often differs from text to text, so that now most of them are
right and now none, and the solution can't be had by a vote. Some repeat another one.
"""

from collections import Counter
from random import Random

from branching_text import END, BranchingText, Encode

from parallel_decode.reasoning.synthesis.reasoner_format import (
    CANDIDATE,
    CANDIDATES,
    CHECK,
    CHOOSE,
    MOST_CANDIDATES,
    RIGHT,
    SYNTHESIS,
    TAGS,
    VERIFY,
    WRONG,
)
from parallel_decode.tasks import TASKS, Problem
from parallel_decode.tasks.program import Program, apply

__all__ = ["TAGS", "attempt", "write"]
MISREAD = 0.5
"""Share of the slips that read a wrong value; the others write a wrong result."""
REPEATED = 0.2
MOST_SLIPS = 3


def attempt(program: Program, slips: int, rng: Random) -> str:
    """A solution with so many slips, which may undo each other."""
    names = [statement.name for statement in program if statement.op]
    slipping = set(rng.sample(names, min(slips, len(names))))
    values: dict[str, int] = {}
    lines = []
    for s in program:
        if not s.op:
            values[s.name] = int(s.left)
            continue
        left, right = (values[x] if x in values else int(x) for x in (s.left, s.right))
        misread = s.name in slipping and rng.random() < MISREAD
        if misread:
            wrong = rng.choice(list(values.values()))
            is_left = s.right not in values or rng.random() < 0.5
            left, right = (wrong, right) if is_left else (left, wrong)
        result = apply(left, s.op, right) % program.modulus
        if s.name in slipping and not misread:
            result = rng.randrange(program.modulus)
        values[s.name] = result
        lines.append(f"{s.name}={left}{s.op}{right}={result}")
    return "\n".join([*lines, f"answer {result}"])


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    encode: Encode,
    rng: Random,
) -> None:
    program = Program.parse(problem.question)
    faulty = rng.random()
    candidates: list[str] = []
    for _ in range(rng.randint(2, MOST_CANDIDATES)):
        if candidates and rng.random() < REPEATED:
            candidates.append(rng.choice(candidates))
        else:
            slips = rng.randint(1, MOST_SLIPS) if rng.random() < faulty else 0
            candidates.append(attempt(program, slips, rng))
    quoted = [f"{CANDIDATE}{n}\n{candidate}\n" for n, candidate in enumerate(candidates, 1)]
    shown = text.append(encode(CANDIDATES + "".join(quoted)), question, learned=False)

    asked = text.append(encode(SYNTHESIS), shown, learned=False)
    text.append(encode(TASKS[problem.task].solution(problem, rng) + END), asked)

    answers = [candidate.rpartition("\n")[2] for candidate in candidates]
    [(most, _)] = Counter(answers).most_common(1)
    asked = text.append(encode(CHOOSE), shown, learned=False)
    text.append(encode(f"{1 + answers.index(most)}{END}"), asked)

    # As often right as wrong, as far as there are both.
    sound = {c for c in candidates if all(program.check_steps(c))}
    wanted = rng.random() < 0.5
    of_kind = [c for c in candidates if (c in sound) == wanted] or candidates
    candidate = rng.choice(of_kind)
    verdict = RIGHT if candidate.endswith(f"answer {problem.answer}") else WRONG
    view = text.append(encode(candidate + CHECK), question, learned=False)
    view = text.append(encode(TASKS[problem.task].solution(problem, rng)), view)
    text.append(encode(END), view)
    view = text.append(encode(VERIFY), view, learned=False)
    text.append(encode(verdict + END), view)
