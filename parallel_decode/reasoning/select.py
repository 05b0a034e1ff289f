"""`Select`: the aggregation that most methods end in."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.program import Steps
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.pipeline import Question
from parallel_decode.reasoning.scorer import Scorer, score_branches
from parallel_decode.reasoning.solution import Solution
from parallel_decode.reasoning.vote import tally
from parallel_decode.reasoning.weighting import Weighting, by_score


@dataclass(frozen=True)
class Select:
    """A: scores the candidates, makes weights of the scores, and lets the answers vote.

    Args:
        extract: text of a branch to its answer; a branch without one does not vote.
        scorer: how good a candidate is; None for 1 each, a plain vote.
        weigh: scores of the candidates that have an answer to the weights of their votes.
    """

    extract: Extractor
    scorer: Scorer | None = None
    weigh: Weighting = by_score

    def __call__(self, question: Question, branches: Sequence[Branch]) -> Steps:
        sound = [branch for branch in branches if branch.status != "failed"]
        answers = answers_of(self.extract, [branch.text for branch in sound])
        if self.scorer is None:
            scores = [1.0] * len(sound)
        else:
            scores = yield from score_branches(self.scorer, sound)
        # What gives no answer must not take the place of the best.
        voting = [i for i, answer in enumerate(answers) if answer is not None]
        given = self.weigh([scores[i] for i in voting])
        if len(given) != len(voting):
            raise ValueError(f"{len(given)} weights for {len(voting)} candidates")
        weights = [0.0] * len(sound)
        for i, weight in zip(voting, given, strict=True):
            weights[i] = weight
        votes = tally(answers, weights)
        ids = [id(branch) for branch in sound]
        return Solution.of(
            branches,
            dict(zip(ids, answers, strict=True)),
            dict(zip(ids, weights, strict=True)),
            votes,
            votes[0][0] if votes else None,
        )
