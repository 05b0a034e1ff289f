"""Speculative rejection: more candidates than fit, the unpromising ones dropped on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Prune, SamplingParams, Steps
from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, mean_logprob, ranked, score_branches
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Pieces
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True)
class SpeculativeRejection(Method):
    """Best-of-N within a KV budget: D copies the question, P samples all copies side by side, and
    whenever the next piece of all would not fit, scores what there is and drops the worst share; A
    takes the best of those that are left.

    Not best-of-N of all: a candidate that looks bad early is gone. With blocks for all it is.

    Args:
        n: candidates at the start.
        kv_blocks: that all candidates' own tokens may take, each started block counted whole. The
            last candidate goes on whatever it takes.
        alpha: share of the running candidates that is dropped at a time, at least one.
        scorer: of partial texts, and of whole ones at the end.
        weigh: the last scores to the weights of votes; see `BestOfN`.
        piece: tokens between two looks.
        params: how candidates are drawn.
        extract: text of a candidate to its answer.
    """

    card: ClassVar = Card(
        "speculative-rejection",
        "efficiency",
        "Sun et al., 2024",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    n: int = 64
    kv_blocks: int = 256
    alpha: float = 0.5
    scorer: Scorer = mean_logprob
    weigh: Weighting = best_only
    piece: int = BLOCK_SIZE
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, kv_blocks=self.kv_blocks)
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha}")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._race, Select(self.extract, self.scorer, self.weigh))

    def _race(self, branches: Sequence[Branch]) -> Steps:
        pieces = Pieces(self.params, self.piece)
        kept, live = list(branches), list(branches)
        while live:
            while len(live) > 1 and self._blocks_ahead(kept, live) > self.kv_blocks:
                yield from score_branches(self.scorer, live)
                dropped = ranked(live)[-math.ceil(self.alpha * len(live)) :]
                dropped = dropped[-(len(live) - 1) :]
                yield Prune(dropped)
                gone = set(map(id, dropped))
                kept = [branch for branch in kept if id(branch) not in gone]
                live = [branch for branch in live if id(branch) not in gone]
            live = yield from pieces.advance(live)
        return kept

    def _blocks_ahead(self, kept: Sequence[Branch], live: Sequence[Branch]) -> int:
        """Blocks of all candidates once those that run have their next piece."""
        running = set(map(id, live))
        return sum(
            -(-(len(branch.own_tokens) + self.piece * (id(branch) in running)) // BLOCK_SIZE)
            for branch in kept
        )
