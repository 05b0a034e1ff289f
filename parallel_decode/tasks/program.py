"""Straight-line modular arithmetic: the structure under the chain and DAG tasks.

A question reads `chain mod 31; a=7; b=a*3; c=b+5; c?` and a gold trace `b=7*3=21`, `c=21+5=26`,
`answer 26`. Groups that do not depend on each other are divided by ` | `.
"""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

from .task import ANSWER, split_steps

NAMES = string.ascii_letters
STATEMENT = re.compile(r"([a-zA-Z])=([a-zA-Z]|\d+)(?:([+*-])([a-zA-Z]|\d+))?")


def apply(left: int, op: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[op]


@dataclass(frozen=True)
class Statement:
    """`name=left` (given) or `name=left op right` (to be computed)."""

    name: str
    left: str
    op: str = ""
    right: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.left}{self.op}{self.right}"


@dataclass(frozen=True)
class Program:
    kind: str
    modulus: int
    groups: tuple[tuple[Statement, ...], ...]

    @classmethod
    def parse(cls, question: str) -> "Program":
        head, body = question.strip().split("; ", 1)
        kind, modulus = head.split(" mod ")
        groups = []
        for group in body.rsplit("; ", 1)[0].split(" | "):
            matches = [STATEMENT.fullmatch(text) for text in group.split("; ")]
            found = [match for match in matches if match is not None]
            if len(found) < len(matches):
                raise ValueError(f"not a program: {question!r}")
            groups.append(tuple(Statement(*(m.groups(""))) for m in found))
        return cls(kind, int(modulus), tuple(groups))

    def __iter__(self) -> Iterator[Statement]:
        for group in self.groups:
            yield from group

    @property
    def question(self) -> str:
        body = " | ".join("; ".join(map(str, group)) for group in self.groups)
        return f"{self.kind} mod {self.modulus}; {body}; {self.groups[-1][-1].name}?\n"

    @cached_property
    def values(self) -> dict[str, int]:
        values: dict[str, int] = {}
        for s in self:
            left = values[s.left] if s.left in values else int(s.left)
            if s.op:
                right = values[s.right] if s.right in values else int(s.right)
                left = apply(left, s.op, right)
            values[s.name] = left % self.modulus
        return values

    @property
    def answer(self) -> str:
        return str(self.values[self.groups[-1][-1].name])

    @cached_property
    def gold_lines(self) -> dict[str, frozenset[str]]:
        """Line -> the lines that must stand before it, in the order of the question."""
        line_of: dict[str, str] = {}
        gold: dict[str, frozenset[str]] = {}
        for s in (s for s in self if s.op):
            left, right = (str(self.values.get(x, x)) for x in (s.left, s.right))
            line = f"{s.name}={left}{s.op}{right}={self.values[s.name]}"
            gold[line] = frozenset(line_of[x] for x in (s.left, s.right) if x in line_of)
            line_of[s.name] = line
        gold[ANSWER + self.answer] = frozenset([line_of[self.groups[-1][-1].name]])
        return gold

    @property
    def trace(self) -> str:
        return "\n".join(self.gold_lines)

    def check_steps(self, text: str) -> list[bool]:
        """A line is right if it is a gold line, new, and all that it depends on stands above."""
        seen: set[str] = set()
        verdicts = []
        for line in split_steps(text):
            needs = self.gold_lines.get(line)
            verdicts.append(needs is not None and line not in seen and needs <= seen)
            if verdicts[-1]:
                seen.add(line)
        return verdicts

    def canonical(self) -> str:
        """Without names, and without the order of the independent groups."""
        bodies = [[f"{s.op}{s.right}" if s.op else s.left for s in g] for g in self.groups]
        if len(bodies) == 1:
            return f"{self.modulus}|{','.join(bodies[0])}"
        heads = sorted(",".join(body) for body in bodies[:-1])
        reduce_ops = "".join(s.op for s in self.groups[-1])
        return f"{self.modulus}|{'|'.join(heads)}|{reduce_ops}"


def random_steps(rng: Random, names: str, modulus: int) -> tuple[Statement, ...]:
    """A given start value and `len(names) - 1` steps, each on the value before it."""
    statements = [Statement(names[0], str(rng.randrange(modulus)))]
    for before, name in zip(names, names[1:], strict=False):
        op = rng.choice("+-*")
        right = rng.randrange(2, 10) if op == "*" else rng.randrange(1, modulus)
        statements.append(Statement(name, before, op, str(right)))
    return tuple(statements)
