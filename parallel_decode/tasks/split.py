"""Disjoint train, verifier and test problems, decided by a stable hash of their structure."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from random import Random

from .chain import Chain
from .countdown import Countdown
from .dag import Dag
from .problem import Problem
from .task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Chain(), Dag(), Countdown())}

# Upper ends of the shares of 100 hash buckets.
SPLITS = {"train": 80, "verifier": 90, "test": 100}

Mix = Mapping[tuple[str, int], float]

# (task, difficulty) -> weight. Kinds that the bundled reasoner gets right now and then, so that
# methods differ: see its model card.
DEFAULT_MIX: Mix = {
    ("chain", 14): 2,
    ("chain", 16): 2,
    ("dag", 5): 2,
    ("dag", 6): 2,
    ("countdown", 3): 2,
    ("countdown", 4): 1,
}


def split_of(problem: Problem) -> str:
    """The split a problem belongs to: the same on every machine and in every process."""
    text = f"{problem.task}|{TASKS[problem.task].canonical(problem)}"
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    return next(name for name, end in SPLITS.items() if bucket < end)


def stream(split: str, rng: Random, mix: Mix = DEFAULT_MIX) -> Iterator[Problem]:
    """Problems of a split without end; repeats are possible."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {tuple(SPLITS)}, not {split!r}")
    kinds, weights = list(mix), list(mix.values())
    while True:
        name, difficulty = rng.choices(kinds, weights)[0]
        problem = TASKS[name].generate(rng, difficulty)
        # Drawn again from the same kind, so that the shares of the mix hold in every split.
        while split_of(problem) != split:
            problem = TASKS[name].generate(rng, difficulty)
        yield problem


def load_split(split: str, n: int, seed: int = 0, mix: Mix = DEFAULT_MIX) -> list[Problem]:
    """`n` problems of a split, no two with the same structure."""
    distinct: dict[str, Problem] = {}
    # A small kind may hold fewer than n problems; without a bound the search would not end.
    for problem in islice(stream(split, Random(f"{split}-{seed}"), mix), 10 * n + 100):
        distinct.setdefault(f"{problem.task}|{TASKS[problem.task].canonical(problem)}", problem)
        if len(distinct) == n:
            break
    if len(distinct) < n:
        raise ValueError(f"the mix holds fewer than {n} distinct {split} problems")
    return list(distinct.values())
