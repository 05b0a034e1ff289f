"""Step-level beam search: the best partial solutions go on, the rest free their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prefill, Prune
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.reasoning.extract import Extractor, last_number
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.self_consistency import Scorer, checked_scores
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.vote import tally

CUT_SHORT = ("aborted", "budget")


def mean_logprob(branches: Sequence[Branch]) -> list[float]:
    """The model's own confidence per token."""
    return [branch.mean_logprob for branch in branches]


@dataclass(frozen=True)
class StepBeam:
    """D opens `width` * `expand` first steps, P grows and prunes them, A takes the best.

    A branch that reaches the end of its text stays a candidate and no longer expands. Among the
    finished, the answer is the heaviest by summed score where scores are not negative, else the
    best branch's.

    Args:
        width: branches that are kept after each step.
        expand: children of each.
        scorer: ranks partial solutions, higher is better.
        step: string that ends a step.
        distinct: of branches with the same text, keep one.
        max_steps: steps after which what is live counts as finished.
        params: how steps are drawn; its `stop` is replaced by `step`.
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
        params = SamplingParams(**{**vars(self.params), "stop": (self.step,)})
        live, finished = list(branches), []
        for depth in range(self.max_steps):
            # The first step has one parent: it opens as many children as later ones do in all.
            per_parent = self.expand * (self.width if depth == 0 else 1)
            families = yield [Fork(branch, per_parent) for branch in live]
            kids = [kid for family in families for kid in family]
            yield Extend(kids, params)
            usable = [kid for kid in kids if kid.status != "failed"]
            if not usable:
                break
            checked_scores(self.scorer, usable)
            ranked = sorted(usable, key=lambda kid: -_score(kid))
            kept = self._select(ranked)
            chosen = {id(kid) for kid in kept}
            yield Prune([kid for kid in ranked if id(kid) not in chosen])
            finished += [kid for kid in kept if kid.status == "finished"]
            live = [kid for kid in kept if kid.status != "finished"]
            if not live or len(finished) >= self.width:
                break
            if any(kid.finish_reason in CUT_SHORT for kid in live):
                break
        return finished or live

    def _select(self, ranked: Sequence[Branch]) -> list[Branch]:
        if not self.distinct:
            return list(ranked[: self.width])
        first = {kid.text: kid for kid in reversed(ranked)}
        return [kid for kid in ranked if first[kid.text] is kid][: self.width]

    def _best(self, question: Question, branches: Sequence[Branch]) -> Steps:
        yield from ()  # a stage is a program, and this one needs no operation
        ranked = sorted(branches, key=lambda branch: -_score(branch))
        answers = [self.extract(branch.text) for branch in ranked]
        scores = [_score(branch) for branch in ranked]
        votes = tally(answers, scores) if min(scores, default=-1.0) >= 0 else []
        best = next((answer for answer in answers if answer is not None), None)
        root = ranked[0]
        while root.parent is not None:
            root = root.parent
        warnings = []
        if not any(branch.status == "finished" for branch in ranked):
            warnings.append("no branch reached the end of its text: raise max_steps or max_tokens")
        return Solution(
            question=root.text_before_output,
            answer=votes[0][0] if votes else best,
            votes=votes,
            paths=[
                Path.of(branch, answer, score)
                for branch, answer, score in zip(ranked, answers, scores, strict=True)
            ],
            tree=TreeNode.of(root, root.text_before_output),
            warnings=warnings,
        )


def _score(branch: Branch) -> float:
    return float("-inf") if branch.score is None else branch.score
