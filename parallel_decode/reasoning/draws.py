"""`draws`: random numbers for what a method chooses itself."""

import random

from parallel_decode.engine import Branch, Seed, Steps


def draws(branch: Branch) -> Steps:
    """Of the program's seed and the branch -> random.Random."""
    seed = yield Seed(branch)
    return random.Random(seed)
