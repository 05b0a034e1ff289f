"""Countdown: reach a target from three or four numbers, each used at most once, with + - *.

`countdown 24 from 3 5 3` is answered by `5+3=8`, `8*3=24`, `answer (5+3)*3`. A search with dead
ends and often several right answers. Votes are counted on the normal form of the final
expression, so `3*(3+5)` and `(5+3)*3` are one answer.
"""

from collections import Counter
from random import Random

from . import expression
from .problem import Problem
from .program import apply
from .task import ANSWER, Task, split_steps

LARGEST = 99

Pool = tuple[tuple[int, str], ...]  # value, expression that made it


class Countdown(Task):
    """The difficulty is how many numbers are given."""

    name = "countdown"
    difficulties = (3, 4)
    largest_number = 12

    def generate(self, rng: Random, difficulty: int) -> Problem:
        self._require(difficulty)
        while True:
            given = [rng.randint(1, self.largest_number) for _ in range(difficulty)]
            pool: Pool = tuple((n, str(n)) for n in given)
            while len(pool) > 1 and (moves := _moves(pool)):
                pool = rng.choice(moves)[1]
            target = pool[0][0]
            if len(pool) == 1 and target not in given:
                question = f"countdown {target} from {' '.join(map(str, given))}\n"
                return Problem(self.name, difficulty, question, str(target))

    def solution(self, problem: Problem, rng: Random) -> str:
        target, given = _read(problem)
        steps = _search(tuple((n, str(n)) for n in given), target, rng)
        assert steps is not None, problem
        return "\n".join(steps)

    def canonical(self, problem: Problem) -> str:
        target, given = _read(problem)
        return f"{target}|{sorted(given)}"

    def check_steps(self, problem: Problem, text: str) -> list[bool]:
        """A step is right if its arithmetic is, its operands are at hand, and the target can
        still be reached after it; the answer line if it is graded right.

        A wrong step uses nothing up: later lines are judged by what the right ones left.
        """
        target, given = _read(problem)
        pool: Pool = tuple((n, str(n)) for n in given)
        verdicts = []
        for line in split_steps(text):
            if line.startswith(ANSWER):
                answer = self.normalise(line.removeprefix(ANSWER).strip())
                verdicts.append(answer is not None and self.grade(problem, answer))
                continue
            after = dict(_moves(pool)).get(line)
            verdicts.append(after is not None and _search(after, target) is not None)
            if after is not None and verdicts[-1]:
                pool = after
        return verdicts

    def grade(self, problem: Problem, answer: str) -> bool:
        target, given = _read(problem)
        tree = expression.parse(answer)
        if tree is None or expression.value(tree) != target:
            return False
        return not Counter(expression.numbers(tree)) - Counter(given)

    def normalise(self, answer: str) -> str | None:
        tree = expression.parse(answer)
        return None if tree is None else expression.normal_form(tree)


def _read(problem: Problem) -> tuple[int, list[int]]:
    target, given = problem.question.removeprefix("countdown ").split(" from ")
    return int(target), [int(n) for n in given.split()]


def _moves(pool: Pool) -> list[tuple[str, Pool]]:
    """Every useful step from `pool`: its line, and the pool after it.

    The larger operand stands first; no zeros, no factor one, nothing above LARGEST.
    """
    moves = []
    for i in range(len(pool)):
        for j in range(i):
            (x, x_text), (y, y_text) = sorted((pool[i], pool[j]), reverse=True)
            rest = tuple(item for k, item in enumerate(pool) if k not in (i, j))
            for op in "+-*":
                z = apply(x, op, y)
                if 0 < z <= LARGEST and not (op == "*" and y == 1):
                    made = (z, f"{_bracket(x_text)}{op}{_bracket(y_text)}")
                    moves.append((f"{x}{op}{y}={z}", (*rest, made)))
    return moves


def _bracket(text: str) -> str:
    return text if text.isdigit() else f"({text})"


def _search(pool: Pool, target: int, rng: Random | None = None) -> list[str] | None:
    """Depth-first search for a trace from `pool` to the answer line; `rng` shuffles the order."""
    for value, text in pool:
        if value == target and not text.isdigit():
            return [ANSWER + text]
    moves = _moves(pool)
    if rng is not None:
        rng.shuffle(moves)
    for line, after in moves:
        rest = _search(after, target, rng)
        if rest is not None:
            return [line, *rest]
    return None
