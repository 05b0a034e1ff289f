"""DAG arithmetic: independent sub-chains, then a reduction of their last values.

`dag mod 19; a=7; b=a*3 | c=4; d=c-9 | e=b+d; e?`: the sub-chains may be worked on in any order or
at the same time, so the critical path is one sub-chain plus the reduction.
"""

from random import Random

from .problem import Problem
from .program import NAMES, Program, Statement, random_steps
from .program_task import ProgramTask


class Dag(ProgramTask):
    """The difficulty picks (width, length): so many sub-chains, of so many steps each."""

    name = "dag"
    shapes = {
        1: (2, 1),
        2: (2, 2),
        3: (2, 3),
        4: (3, 2),
        5: (3, 3),
        6: (4, 3),
        7: (4, 4),
        8: (8, 4),
    }
    difficulties = tuple(shapes)

    def generate(self, rng: Random, difficulty: int) -> Problem:
        self._require(difficulty)
        return self.problem(difficulty, self.draw(rng, *self.shapes[difficulty]))

    def draw(self, rng: Random, width: int, length: int, first_name: int = 0) -> Program:
        """A program of any shape that the names are enough for; they begin with number
        `first_name`."""
        needed = width * (length + 2) - 1
        if width < 2 or length < 1 or not 0 <= first_name <= len(NAMES) - needed:
            raise ValueError(
                f"no DAG of width {width} and length {length} from name {first_name} on: it takes"
                f" {needed} of {len(NAMES)} names, a width of 2 and a length of 1"
            )
        modulus = rng.choice(self.moduli)
        names = iter(NAMES[first_name:])
        chains = []
        for _ in range(width):
            own = "".join(next(names) for _ in range(length + 1))
            chains.append(random_steps(rng, own, modulus))
        reduction = []
        total = chains[0][-1].name
        for chain in chains[1:]:
            reduction.append(Statement(next(names), total, rng.choice("+-"), chain[-1].name))
            total = reduction[-1].name
        return Program(self.name, modulus, (*chains, tuple(reduction)))
