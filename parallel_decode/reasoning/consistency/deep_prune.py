"""DeepPrune: of traces that go the same way, one goes on and votes for all (Tu et al., 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Prune, SamplingParams, Steps
from parallel_decode.reasoning.consistency.duplicates import Judge, clustered, token_overlap
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import given
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Pieces


@dataclass(frozen=True)
class DeepPrune(Method):
    """D copies the question; P compares the running traces every `every` tokens, keeps one of those
    that the judge finds alike and prunes the others; A lets the answers vote, each trace with the
    votes of those that it stands for.

    The paper trains a judge; the overlap of tokens, which is the default, is a guess that needs no
    training. A judge that is wrong moves votes to another answer.

    Args:
        n: traces.
        every: tokens between two comparisons.
        judge: pairs of traces to how likely they end in the same answer, in [0, 1].
        threshold: from which on two traces are alike; above 1 nothing is pruned.
        params: how traces are drawn.
        extract: text of a branch to its answer; a branch without one does not vote.
    """

    card: ClassVar = Card(
        "deepprune", "self-consistency", "Tu et al., 2025", ("prefill", "fork", "extend", "prune")
    )

    n: int = 16
    every: int = 32
    judge: Judge = token_overlap
    threshold: float = 0.9
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold must be positive, got {self.threshold}")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        pieces = Pieces(self.params, self.every)
        return Pipeline(
            Copies(self.n), lambda b: self._sample(b, pieces), Select(self.extract, given)
        )

    def _sample(self, branches: Sequence[Branch], pieces: Pieces) -> Steps:
        stands_for = {id(branch): 1 for branch in branches}
        live = list(branches)
        while live:
            running = yield from pieces.advance(live)
            clusters = yield from clustered(running, self.judge, self.threshold)
            for first, *others in clusters:
                stands_for[id(first)] += sum(stands_for.pop(id(other)) for other in others)
                yield Prune(others)
            live = [cluster[0] for cluster in clusters]
        left = [branch for branch in branches if id(branch) in stands_for]
        for branch in left:
            branch.score = float(stands_for[id(branch)])
        return left
