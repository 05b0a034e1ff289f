"""`Conclusion`: the answer of a search whose candidates were scored on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.pipeline import Question
from parallel_decode.reasoning.scorer import given, ranked
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True)
class Conclusion:
    """A: lets candidates vote by the scores that they have, the best first, and says so where none
    of them came to its end."""

    growth: Growth
    extract: Extractor
    weigh: Weighting = best_only

    def __call__(self, question: Question, branches: Sequence[Branch]) -> Steps:
        select = Select(self.extract, given, self.weigh)
        solution = yield from select(question, ranked(branches))
        if not any(self.growth.has_ended(b) for b in branches if b.status != "failed"):
            solution.warnings.append(
                "no branch reached the end of its text: raise max_steps or max_tokens"
            )
        return solution
