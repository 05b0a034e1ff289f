"""Chain arithmetic: k dependent steps modulo m. Errors compound, so k sets the hardness."""

from random import Random

from .problem import Problem
from .program import NAMES, Program, random_steps
from .program_task import ProgramTask


class Chain(ProgramTask):
    """The difficulty is the number of steps."""

    name = "chain"
    difficulties = tuple(range(1, 25))

    def generate(self, rng: Random, difficulty: int) -> Problem:
        self._require(difficulty)
        modulus = rng.choice(self.moduli)
        steps = random_steps(rng, NAMES[: difficulty + 1], modulus)
        program = Program(self.name, modulus, (steps,))
        return self.problem(difficulty, program)
