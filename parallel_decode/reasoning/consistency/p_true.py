"""`PTrue`: the model's own verdict on a finished branch, in one token."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallel_decode.engine import Branch, Prune, Score, Steps
from parallel_decode.reasoning.probe import Probe
from parallel_decode.reasoning.reply_share import share

KNOWS_NOTHING = 0.5


@dataclass(frozen=True)
class PTrue:
    """Scorer: P(yes) / (P(yes) + P(no)) after a question about the branch, in [0, 1] (Kadavath et
    al., 2022). The keys of the branch are used as they are stored: it costs the tokens of the
    question, and one more for each word.

    Args:
        question: follows the text of the branch.
        yes, no: how the model would go on; one token each is best. They follow `question` without a
            blank between.

    A branch whose context has no room for the question scores 0.5.
    """

    question: str = "\nIs this answer correct? It is"
    yes: str = " true"
    no: str = " false"

    def __post_init__(self) -> None:
        for name in ("question", "yes", "no"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        kids = yield from Probe(self.question)(branches)
        asked = [kid for kid in kids if kid is not None]
        verdicts = [(Score([kid], self.yes), Score([kid], self.no)) for kid in asked]
        with contextlib.suppress(ValueError):  # of those whose context ends just there
            yield [score for verdict in verdicts for score in verdict]
        found = {id(kid): _share(yes, no) for kid, (yes, no) in zip(asked, verdicts, strict=True)}
        yield Prune(asked)
        return [KNOWS_NOTHING if kid is None else found[id(kid)] for kid in kids]


def _share(yes: Score, no: Score) -> float:
    if yes.error is not None or no.error is not None:
        return KNOWS_NOTHING
    results: tuple[Any, Any] = yes.result, no.result
    [of_yes], [of_no] = results
    return share([of_yes, of_no])
