"""What a synthesiser is shown: candidates in an order that the seed gives."""

from collections.abc import Sequence

from parallel_decode.reasoning.author import Reply
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.metrics.aggregation_collapse import (
    Synthesis,
    aggregation_collapse,
)


def sound(replies: Sequence[Reply]) -> list[str]:
    """The texts of those that did not fail."""
    return [reply.text for reply in replies if reply.error is None]


def syntheses(
    replies: Sequence[Reply],
    answers: Sequence[str | None],
    shown: Sequence[Sequence[str]],
    extract: Extractor,
) -> list[Synthesis]:
    """What the collapse detector looks at: replies that did not fail, with their answers and the
    candidates of each in the order in which they were shown."""
    texts = list(dict.fromkeys(text for candidates in shown for text in candidates))
    known = dict(zip(texts, answers_of(extract, texts), strict=True))
    return [
        Synthesis(reply.text, answer, candidates, [known[text] for text in candidates])
        for reply, answer, candidates in zip(replies, answers, shown, strict=True)
        if reply.error is None and candidates
    ]


def collapse_warnings(found: Sequence[Synthesis]) -> list[str]:
    return aggregation_collapse(found).warnings if found else []
