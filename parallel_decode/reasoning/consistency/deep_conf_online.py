"""DeepConf online: traces end where their confidence falls below that of a warm-up (Fu et al.,
2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, Fork, Prune, SamplingParams, Steps
from parallel_decode.reasoning.consistency.confidence import (
    TraceConfidence,
    keep_threshold,
    relative_window,
)
from parallel_decode.reasoning.consistency.stopping import consensus
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import given
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Pieces, root
from parallel_decode.reasoning.vote import tally

CUT_SHORT = ("aborted", "budget")


@dataclass(frozen=True)
class DeepConfOnline(Method):
    """D opens the question; P samples a warm-up to its end, takes from it the confidence that a
    share `keep` of the traces reaches, and prunes further traces as soon as a window of theirs is
    below; A lets those that are left vote by their lowest window.

    The threshold is that of one question. The warm-up is paid in full: it is most of a small n.

    Args:
        n: samples in all.
        warm_up: samples before the threshold is set.
        keep: share of the warm-up that is above it: 0.9 is careful, 0.1 cuts most traces.
        consensus: stops where one answer has this share of the votes so far; None for never.
        every: tokens between two looks at the traces.
        window: tokens of a window; None for an eighth of the warm-up's mean length, at least 8.
        top_k: the most likely tokens whose log-probabilities make the confidence.
        params: how samples are drawn; `logprobs` is raised to `top_k`.
        extract: text of a branch to its answer; a branch without one does not vote.
    """

    card: ClassVar = Card(
        "deepconf-online",
        "self-consistency",
        "Fu et al., 2025",
        ("prefill", "fork", "extend", "prune"),
    )

    n: int = 64
    warm_up: int = 16
    keep: float = 0.9
    consensus: float | None = None
    every: int = 8
    window: int | None = None
    top_k: int = 20
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not 1 <= self.warm_up < self.n:
            raise ValueError(f"warm_up must be at least 1 and below n={self.n}, got {self.warm_up}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}")
        if self.consensus is not None and not 0 < self.consensus <= 1:
            raise ValueError(f"consensus must be in (0, 1], got {self.consensus}")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        TraceConfidence("lowest", self.window, self.top_k)
        params = replace(self.params, logprobs=max(self.params.logprobs, self.top_k))
        pieces = Pieces(params, self.every)
        return Pipeline(root, lambda b: self._sample(b, pieces), Select(self.extract, given))

    def _sample(self, roots: Sequence[Branch], pieces: Pieces) -> Steps:
        [question] = roots
        warm = yield Fork(question, self.warm_up)
        yield Extend(warm, pieces.params)
        failed = [branch for branch in warm if branch.status == "failed"]
        sound = [branch for branch in warm if branch.status != "failed"]
        if not sound:
            return failed
        mean_length = sum(len(branch.own_tokens) for branch in sound) / len(sound)
        window = self.window or relative_window(mean_length)
        threshold = keep_threshold(self._mark(sound, window), self.keep)
        low = [branch for branch in sound if _score(branch) < threshold]
        yield Prune(low)
        kept = [branch for branch in sound if branch.status != "pruned"]
        live: list[Branch] = []
        if not any(branch.finish_reason in CUT_SHORT for branch in warm) and not self._agree(kept):
            live = yield Fork(question, self.n - self.warm_up)
        while live:
            going_on = yield from pieces.advance(live)
            running = {id(branch) for branch in going_on}
            failed += [branch for branch in live if branch.status == "failed"]
            sound = [branch for branch in live if branch.status != "failed"]
            self._mark(sound, window)
            # A window that is not full yet says nothing of a trace that goes on.
            low = [
                branch
                for branch in sound
                if _score(branch) < threshold
                and (id(branch) not in running or len(branch.own_tokens) >= window)
            ]
            yield Prune(low)
            alive = [branch for branch in sound if branch.status != "pruned"]
            ended = [branch for branch in alive if id(branch) not in running]
            live = [branch for branch in alive if id(branch) in running]
            kept += ended
            if ended and self._agree(kept):
                yield Prune(live)
                break
        return [*kept, *failed]

    def _mark(self, branches: Sequence[Branch], window: int) -> list[float]:
        """The lowest window of each, also as its score."""
        lowest = TraceConfidence("lowest", window, self.top_k)
        scores = lowest(branches)
        for branch, score in zip(branches, scores, strict=True):
            branch.score = score
        return scores

    def _agree(self, ended: Sequence[Branch]) -> bool:
        if self.consensus is None:
            return False
        answers = answers_of(self.extract, [branch.text for branch in ended])
        return consensus(tally(answers, given(ended)), self.consensus)


def _score(branch: Branch) -> float:
    return given([branch])[0]
