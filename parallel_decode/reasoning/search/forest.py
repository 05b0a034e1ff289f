"""Forest of Thought: several searches of one question, and a vote of their answers."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.search.dvts import DVTS
from parallel_decode.reasoning.search.step_search import StepSearch
from parallel_decode.reasoning.solution import Solution
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.vote import tally


@dataclass(frozen=True)
class Forest(Method):
    """Each tree is a whole search of its own, with its own draws; all run in one batch. A tree has
    one vote, for its answer; of equals the answer whose trees are surer of it wins.

    Args:
        search: the search of each tree.
        trees: how many.
    """

    card: ClassVar = Card(
        "forest", "structured search", "Bi et al., 2024", ("prefill", "fork", "extend", "prune")
    )

    search: StepSearch = field(default_factory=DVTS)
    trees: int = 4

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.trees), self._grow, self._agree)

    def _grow(self, branches: Sequence[Branch]) -> Steps:
        """-> the candidates of all trees."""
        process = self.search.pipeline().process
        trees = yield from gather([process([branch]) for branch in branches])
        return [branch for tree in trees for branch in tree]

    def _agree(self, question: Question, branches: Sequence[Branch]) -> Steps:
        aggregate = self.search.pipeline().aggregate
        # A tree's branches all begin with the number of its copy of the question.
        trees = [list(tree) for _, tree in itertools.groupby(branches, lambda b: b.path[0])]
        solutions: list[Solution] = yield from gather([aggregate(question, t) for t in trees])
        answers = [solution.answer for solution in solutions]
        votes = tally(answers, [1.0] * len(answers))
        sure = dict(tally(answers, [_share(solution) for solution in solutions]))
        votes.sort(key=lambda vote: (-vote[1], -sure[vote[0]]))
        return Solution.merged(solutions, votes)


def _share(solution: Solution) -> float:
    """Of the votes of a tree, that for its answer."""
    total = sum(weight for _, weight in solution.votes)
    return solution.votes[0][1] / total if total else 0.0
