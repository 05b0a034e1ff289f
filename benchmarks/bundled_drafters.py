"""`BundledDrafters`: the reasoner, and everybody who drafts for it."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property

from benchmarks.chain_of import ChainOf
from benchmarks.speculation import drafters
from parallel_decode import Engine
from parallel_decode.engine import Drafter, Speculator
from parallel_decode.speculation import Speculation, StaticSpeculation, StepCosts

KEPT_LAYERS = (0, 1, 3)
NODES = 8
"""Of a draft that does not ask what pays."""
CHAINS = ("n-gram", "jacobi", "draft model")
"""They draft nothing else."""
ONLY_MATCHED = ("lookahead", "jacobi")
"""Their drafts are guesses at what the branch's own random numbers are going to give."""


class BundledDrafters:
    """Attributes: engine, draft: the reasoner and its draft model. makers: of drafters, by name."""

    def __init__(self, threads: int) -> None:
        self.engine = Engine.from_pretrained("reasoner", threads=threads)
        self.draft = Engine.from_pretrained("reasoner-draft", threads=threads)
        makers = drafters(self.engine, self.draft, KEPT_LAYERS)
        # Each drafter once: others may be in it twice, in another shape.
        self.makers: dict[str, Callable[[], Drafter]] = {
            name.partition(" 0")[0]: make for name, make in makers.items() if ", " not in name
        }

    @cached_property
    def costs(self) -> StepCosts:
        return StepCosts.measure(self.engine)

    def shapes(self, drafter: str) -> tuple[str, ...]:
        """Of its drafts."""
        return ("static", "dynamic") if drafter in CHAINS else ("chain", "static", "dynamic")

    def speculator(self, drafter: str, shape: str) -> Speculator:
        """A new one, which knows nothing."""
        made = self.makers[drafter]()
        if shape == "dynamic":
            return Speculation(made, self.costs)
        return StaticSpeculation(ChainOf(made) if shape == "chain" else made, NODES)

    @contextlib.contextmanager
    def speculating(self, speculator: Speculator | None) -> Iterator[None]:
        """Within, it is the engine's."""
        self.engine.speculator = speculator
        try:
            yield
        finally:
            self.engine.speculator = None
