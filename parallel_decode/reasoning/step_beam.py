"""Step-level beam search: the best partial solutions go on, the rest free their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prefill, Prune
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.reasoning.extract import Extractor, last_number
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.scorer import Scorer, mean_logprob, score_branches
from parallel_decode.reasoning.solution import Solution
from parallel_decode.reasoning.vote import tally

CUT_SHORT = ("aborted", "budget")


@dataclass(frozen=True)
class StepBeam:
    """D opens `width` * `expand` first steps, P grows and prunes them, A takes the best.

    A branch that ends (end of sequence, a stop of `params`, a full context) stays a candidate and
    no longer expands. The search is over when `width` branches have ended or nothing goes on. Among
    the ended, the answer is the heaviest by summed score where scores are not negative, else the
    best branch's; what has not ended is a candidate only where nothing has.

    Args:
        width: branches that are kept after each step.
        expand: children of each.
        scorer: ranks partial solutions, higher is better.
        step: string that ends a step.
        distinct: of branches with the same text, keep one.
        max_steps: steps of a branch at the most.
        params: how steps are drawn; max_tokens is that of one step, which goes on as the next one.
        extract: text of a branch to its answer.
    """

    width: int = 4
    expand: int = 4
    scorer: Scorer = mean_logprob
    step: str = "\n"
    distinct: bool = True
    max_steps: int = 40
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=64))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        for name in ("width", "expand", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.step:
            raise ValueError("step must not be empty")

    def program(self, question: Question) -> Steps:
        return Pipeline(self._open, self._search, self._best).program(question)

    def _open(self, question: Question) -> Steps:
        root = yield Prefill(question)
        return [root]

    def _search(self, branches: Sequence[Branch]) -> Steps:
        params = replace(self.params, stop=(self.step, *self.params.stop))
        live: list[Branch] = list(branches)
        ended: list[Branch] = []
        kids: list[Branch] = []
        for depth in range(self.max_steps):
            # The first step has one parent: it opens as many children as later ones do in all.
            per_parent = self.expand * (self.width if depth == 0 else 1)
            families = yield [Fork(branch, per_parent) for branch in live]
            # The children hold what they share with their parent; a line that dies out must not.
            yield Prune(live)
            kids = [kid for family in families for kid in family]
            yield Extend(kids, params)
            usable = [kid for kid in kids if kid.status != "failed"]
            yield from score_branches(self.scorer, usable)
            ranked = sorted(usable, key=lambda kid: -_score(kid))
            kept = self._select(ranked)
            chosen = {id(kid) for kid in kept}
            yield Prune([kid for kid in ranked if id(kid) not in chosen])
            ended += [kid for kid in kept if self._has_ended(kid)]
            live = [kid for kid in kept if not self._has_ended(kid)]
            if not live or len(ended) >= self.width:
                break
            if any(kid.finish_reason in CUT_SHORT for kid in live):
                break
        if ended:
            yield Prune(live)
        return ended or live or kids

    def _has_ended(self, kid: Branch) -> bool:
        if kid.finish_reason == "length":
            # Short of max_tokens it is the context that is full.
            return len(kid.own_tokens) < self.params.max_tokens
        after_step = kid.finish_reason == "stop" and kid.stop_string == self.step
        return not after_step and kid.finish_reason not in CUT_SHORT

    def _select(self, ranked: Sequence[Branch]) -> list[Branch]:
        if not self.distinct:
            return list(ranked[: self.width])
        first = {kid.text: kid for kid in reversed(ranked)}
        return [kid for kid in ranked if first[kid.text] is kid][: self.width]

    def _best(self, question: Question, branches: Sequence[Branch]) -> Steps:
        yield from ()  # a stage is a program, and this one needs no operation
        ranked = sorted(branches, key=lambda branch: -_score(branch))
        sound = [branch for branch in ranked if branch.status != "failed"]
        answers = [self.extract(branch.text) for branch in sound]
        scores = [_score(branch) for branch in sound]
        votes = tally(answers, scores) if min(scores, default=-1.0) >= 0 else []
        best = next((answer for answer in answers if answer is not None), None)
        ids = [id(branch) for branch in sound]
        solution = Solution.of(
            ranked,
            dict(zip(ids, answers, strict=True)),
            dict(zip(ids, scores, strict=True)) if votes else {},
            votes,
            votes[0][0] if votes else best,
        )
        if not any(self._has_ended(branch) for branch in sound):
            solution.warnings.append(
                "no branch reached the end of its text: raise max_steps or max_tokens"
            )
        return solution


def _score(branch: Branch) -> float:
    return float("-inf") if branch.score is None else branch.score
