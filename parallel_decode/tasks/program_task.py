"""What the chain and DAG tasks share: a question is a program, a gold trace its evaluation."""

import re
from random import Random

from .problem import Problem
from .program import Program
from .task import Task

NUMBER = re.compile(r"0|[1-9]\d?")


class ProgramTask(Task):
    moduli = (10, 19, 31)

    def problem(self, difficulty: int, program: Program) -> Problem:
        return Problem(self.name, difficulty, program.question, program.answer)

    def solution(self, problem: Problem, rng: Random) -> str:
        return Program.parse(problem.question).trace

    def canonical(self, problem: Problem) -> str:
        return Program.parse(problem.question).canonical()

    def check_steps(self, problem: Problem, text: str) -> list[bool]:
        return Program.parse(problem.question).check_steps(text)

    def grade(self, problem: Problem, answer: str) -> bool:
        return answer == problem.answer

    def normalise(self, answer: str) -> str | None:
        return answer if NUMBER.fullmatch(answer) else None
