"""`StepSearch`: what all searches over steps have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, likelihood
from parallel_decode.reasoning.search.conclusion import Conclusion
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.stages import root
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True, kw_only=True)
class StepSearch(Method):
    """D opens the question, P grows a tree of partial solutions, A lets those that ended vote by
    the scores that they have.

    Args:
        scorer: values partial and whole solutions, higher is better.
        step: string that ends a step.
        max_steps: steps of a branch at the most.
        params: how steps are drawn; max_tokens is that of one step, which goes on as the next one.
        extract: text of a branch to its answer.
        weigh: the last scores of the candidates to the weights of their votes.
    """

    scorer: Scorer = likelihood
    step: str = "\n"
    max_steps: int = 40
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=64))
    extract: Extractor = last_number
    weigh: Weighting = best_only

    @property
    def growth(self) -> Growth:
        return Growth(self.step, self.max_steps, self.params)

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._process, Conclusion(self.growth, self.extract, self.weigh))

    def _process(self, branches: Sequence[Branch]) -> Steps:
        [question] = branches
        return (yield from self.search(self.explorer(question)))

    def explorer(self, question: Branch) -> Explorer:
        return Explorer(question, self.growth, self.scorer)

    @abstractmethod
    def search(self, explorer: Explorer) -> Steps:
        """P, as a program over the nodes of one question -> branches to choose from."""
