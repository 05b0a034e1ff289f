"""Step-level beam search: the best partial solutions go on, the rest free their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Prune, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, mean_logprob, ranked, score_branches
from parallel_decode.reasoning.search.conclusion import Conclusion
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.stages import root
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True)
class StepBeam(Method):
    """D opens the question, P grows and prunes `width` partial solutions, A takes the best.

    A branch that ends (end of sequence, a stop of `params`, a full context) stays a candidate and
    no longer expands. The search is over when `width` branches have ended or nothing goes on. What
    has not ended is a candidate only where nothing has.

    Args:
        width: branches that are kept after each step.
        expand: children of each.
        scorer: ranks partial solutions, higher is better.
        step: string that ends a step.
        distinct: of branches with the same text, keep one.
        max_steps: steps of a branch at the most.
        params: how steps are drawn; max_tokens is that of one step, which goes on as the next one.
        extract: text of a branch to its answer.
        weigh: the last scores of the candidates to the weights of their votes.
    """

    card: ClassVar = Card(
        "step-beam", "structured search", "Xie et al., 2023", ("prefill", "fork", "extend", "prune")
    )

    width: int = 4
    expand: int = 4
    scorer: Scorer = mean_logprob
    step: str = "\n"
    distinct: bool = True
    max_steps: int = 40
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=64))
    extract: Extractor = last_number
    weigh: Weighting = best_only

    def __post_init__(self) -> None:
        at_least(1, width=self.width, expand=self.expand)
        super().__post_init__()

    @property
    def _growth(self) -> Growth:
        return Growth(self.step, self.max_steps, self.params)

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._search, Conclusion(self._growth, self.extract, self.weigh))

    def _search(self, branches: Sequence[Branch]) -> Steps:
        growth = self._growth
        live: list[Branch] = list(branches)
        ended: list[Branch] = []
        kids: list[Branch] = []
        for depth in range(self.max_steps):
            # The first step has one parent: it opens as many children as later ones do in all.
            per_parent = self.expand * (self.width if depth == 0 else 1)
            families = yield from growth.expand(live, [per_parent] * len(live))
            # The children hold what they share with their parent; a line that dies out must not.
            yield Prune(live)
            kids = [kid for family in families for kid in family]
            usable = [kid for kid in kids if kid.status != "failed"]
            yield from score_branches(self.scorer, usable)
            kept = self._select(ranked(usable))
            chosen = {id(kid) for kid in kept}
            yield Prune([kid for kid in usable if id(kid) not in chosen])
            ended += [kid for kid in kept if growth.has_ended(kid)]
            live = [kid for kid in kept if not growth.has_ended(kid)]
            if not live or len(ended) >= self.width or any(map(growth.was_cut, live)):
                break
        if ended:
            yield Prune(live)
        return ended or live or kids

    def _select(self, kids: Sequence[Branch]) -> list[Branch]:
        if not self.distinct:
            return list(kids[: self.width])
        first = {kid.text: kid for kid in reversed(kids)}
        return [kid for kid in kids if first[kid.text] is kid][: self.width]
