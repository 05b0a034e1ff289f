"""`SelfEvaluation`: the model's own word on whether a partial solution is right."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Score, Steps
from parallel_decode.reasoning.reply_share import share


@dataclass(frozen=True)
class SelfEvaluation:
    """A scorer: p(yes) / (p(yes) + p(no)) after a question is put to the branch, in (0, 1) (Xie et
    al., 2023). Nothing is left on the branch; the probes are counted. A small model must have been
    trained to answer.

    Args:
        question: appended to the branch.
        yes, no: the answers between which the model decides.
    """

    question: str = "\nIs this correct so far? "
    yes: str = "yes"
    no: str = "no"

    def __post_init__(self) -> None:
        if not self.yes or not self.no or self.yes == self.no:
            raise ValueError(f"yes and no must be two texts, got {self.yes!r}, {self.no!r}")

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        agreed, denied = yield [
            Score(branches, self.question + self.yes),
            Score(branches, self.question + self.no),
        ]
        return [share([for_it, against]) for for_it, against in zip(agreed, denied, strict=True)]
