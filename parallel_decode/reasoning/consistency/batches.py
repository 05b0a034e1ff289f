"""`Batches`: samples drawn a few at a time, until a rule says that they are enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Extend, Fork, SamplingParams, Steps
from parallel_decode.reasoning.consistency.stopping import StoppingRule
from parallel_decode.reasoning.extraction import Extractor, answers_of


@dataclass(frozen=True)
class Batches:
    """P: children of one branch to their end, `size` at a time, `n` at the most. The first m are
    those that n at once would begin with.

    Args:
        extract: is asked for the answers of all samples so far after each batch.
        enough: looks at these answers; None for a sample that failed or has none.
    """

    size: int
    n: int
    params: SamplingParams
    extract: Extractor
    enough: StoppingRule

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.n:
            raise ValueError(f"a batch must be between 1 and n={self.n} samples, got {self.size}")

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        [root] = branches
        drawn: list[Branch] = []
        while len(drawn) < self.n:
            kids = yield Fork(root, min(self.size, self.n - len(drawn)))
            yield Extend(kids, self.params)
            drawn += kids
            if any(kid.finish_reason in ("budget", "aborted") for kid in kids):
                break
            sound = [kid for kid in drawn if kid.status != "failed"]
            found = answers_of(self.extract, [kid.text for kid in sound])
            of_kid = dict(zip(map(id, sound), found, strict=True))
            if self.enough([of_kid.get(id(kid)) for kid in drawn]):
                break
        return drawn
