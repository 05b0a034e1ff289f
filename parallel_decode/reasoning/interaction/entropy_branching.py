"""Entropy-gated branching: forks only where the model was not sure of the next token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Fork, Prune, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, likelihood, ranked, score_branches
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Pieces


@dataclass(frozen=True)
class EntropyBranching(Method):
    """D copies the question; P draws `every` tokens of each branch, keeps the `width` best, and
    forks these where their newest tokens were the least certain, in front of that token, if its
    entropy was above the threshold; A lets those that ended vote.

    Entropy-Gated Branching for Efficient Test-Time Reasoning (Li et al., 2025).

    A high entropy may come from a choice of words as well as from a fork in the reasoning.

    Args:
        n: branches to begin with.
        width: branches that are kept, those that have ended included.
        fan: ways on from an uncertain token, the one that was taken included; 1 forks nowhere.
        threshold: entropy of the model's distribution above which it forks, in nats.
        every: tokens between two looks.
        scorer: ranks branches where there are more than `width`, and weighs the votes.
        params: how branches are drawn.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "entropy-branching",
        "interaction",
        "Li et al., 2025",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    n: int = 1
    width: int = 8
    fan: int = 2
    threshold: float = 1.0
    every: int = 32
    scorer: Scorer = likelihood
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, fan=self.fan)
        if self.width < self.n:
            raise ValueError(f"width must be at least n={self.n}, got {self.width}")
        if math.isnan(self.threshold):
            raise ValueError("threshold must be a number, got nan")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        pieces = Pieces(self.params, self.every)
        return Pipeline(
            Copies(self.n), lambda b: self._grow(b, pieces), Select(self.extract, self.scorer)
        )

    def _grow(self, branches: Sequence[Branch], pieces: Pieces) -> Steps:
        live, ended = list(branches), []
        while live:
            lengths = {id(branch): len(branch.output_tokens) for branch in live}
            running = yield from pieces.advance(live)
            goes_on = set(map(id, running))
            ended += [branch for branch in live if id(branch) not in goes_on]
            yield from self._prune(running, ended)
            running = [branch for branch in running if branch.status == "live"]
            forks = [
                Fork(branch, self.fan - 1, at)
                for branch in running
                if (at := self._fork_point(branch, lengths[id(branch)])) is not None
            ]
            families = yield forks
            live = [*running, *(kid for family in families for kid in family)]
        return ended

    def _prune(self, running: Sequence[Branch], ended: Sequence[Branch]) -> Steps:
        """Ends the worst of those that go on, until no more than `width` are left."""
        room = max(0, self.width - sum(branch.status != "failed" for branch in ended))
        if len(running) > room:
            yield from score_branches(self.scorer, running)
            yield Prune(ranked(running)[room:])

    def _fork_point(self, branch: Branch, length: int) -> int | None:
        """In front of which token it forks, of those drawn behind the first `length`."""
        if self.fan < 2:
            return None
        newest = [record.entropy for record in branch.records[length:]]
        where = most_uncertain(newest, self.threshold)
        return None if where is None else branch.prompt_length + length + where


def most_uncertain(entropies: Sequence[float], threshold: float) -> int | None:
    """Where the entropy is largest, the first of equals, if it is above the threshold; NaN is of a
    token that was given."""
    known = [(entropy, -number) for number, entropy in enumerate(entropies) if entropy > threshold]
    return -max(known)[1] if known else None
