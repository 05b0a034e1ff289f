"""Skeleton-of-Thought: a list of points, then all of them written out at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, Fork, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.consistency.p_true import PTrue
from parallel_decode.reasoning.decomposition.ask import ask
from parallel_decode.reasoning.decomposition.numbered import numbered
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.reading import ReadInOrder
from parallel_decode.reasoning.scorer import Scorer, score_branches
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.template import Template


def _router() -> PTrue:
    return PTrue(Template.named("skeleton_route").fill(), " yes", " no")


@dataclass(frozen=True)
class SkeletonOfThought(Method):
    """D copies the question, and asks a router whether points can be written apart; P lets each
    copy write a skeleton and expands its points side by side over it, or answers as usual; A reads
    skeleton and points in their order.

    No point sees another: what depends on what was said before, such as mathematics, gets worse.
    It asks for a model that follows instructions.

    Args:
        n: samples.
        max_points: of a skeleton; the rest is not written.
        router: scores how fit a question is, by the copy that holds it; None for always.
        threshold: the score from which on it is.
        skeleton: what a copy is told; a template without places.
        point: what a fork is told, with {number} and {text}.
        skeleton_params: how skeletons are drawn.
        point_params: how points are drawn; max_tokens bounds each.
        params: how answers are drawn that are not fit.
        extract: text of a sample to its answer.
    """

    card: ClassVar = Card(
        "skeleton-of-thought",
        "decomposition",
        "Ning et al., 2024",
        ("prefill", "fork", "score", "extend"),
    )

    n: int = 1
    max_points: int = 10
    router: Scorer | None = field(default_factory=_router)
    threshold: float = 0.5
    skeleton: Template = field(default_factory=partial(Template.named, "skeleton"))
    point: Template = field(default_factory=partial(Template.named, "skeleton_point"))
    skeleton_params: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_tokens=96, stop="\n\n")
    )
    point_params: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_tokens=128, stop="\n\n")
    )
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=512))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, max_points=self.max_points)
        self.skeleton.require()
        self.point.require("number", "text")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._write, ReadInOrder(self.extract))

    def _write(self, branches: Sequence[Branch]) -> Steps:
        fit = [True] * len(branches)
        if self.router is not None:
            scores = yield from score_branches(self.router, branches)
            fit = [score >= self.threshold for score in scores]
        plain = [branch for branch, is_fit in zip(branches, fit, strict=True) if not is_fit]
        programs = [self._expand(b) for b, is_fit in zip(branches, fit, strict=True) if is_fit]
        yield from gather([self._answer(plain), *programs])
        return list(branches)

    def _answer(self, branches: Sequence[Branch]) -> Steps:
        yield Extend(branches, self.params)

    def _expand(self, branch: Branch) -> Steps:
        said = yield from ask(branch, self.skeleton.fill(), self.skeleton_params)
        points = numbered(said or "", self.max_points)
        if not points or branch.status not in ("live", "finished"):
            return
        at = branch.num_tokens - (branch.finish_reason == "eos")
        kids = yield Fork(branch, len(points), at)
        prompts = [
            self.point.fill(number=str(number), text=text) for number, text in enumerate(points, 1)
        ]
        yield from gather(
            [ask(kid, p, self.point_params) for kid, p in zip(kids, prompts, strict=True)]
        )
