"""A question put behind candidates, and how likely the model finds each reply to it."""

from collections.abc import Sequence

from parallel_decode.engine import (
    Branch,
    Delegate,
    Engine,
    Extend,
    Fork,
    Prefill,
    Prune,
    Rollback,
    SamplingParams,
    Score,
    Steps,
)

Likelihoods = list[list[list[float]]]
"""[copy of a candidate][reply] -> log-probability of each of the reply's tokens."""


def follow_up(
    branches: Sequence[Branch],
    ask: str,
    replies: Sequence[str],
    engine: Engine | None = None,
    copies: int = 1,
    reason: str = "",
    params: SamplingParams | None = None,
) -> Steps:
    """Asks about each candidate, in one batch; the candidates stay as they are.

    Args:
        ask: text behind the candidate, or behind the rationale.
        replies: texts whose log-probabilities are wanted.
        engine: with the model that is asked, which reads question and candidate as text; None for
            the model that wrote them, which has read them.
        copies: rationales for each candidate.
        reason: text behind the candidate that begins a rationale.
        params: how rationales are drawn; None for none.

    Returns:
        `Likelihoods` of each candidate, copies that failed left out.

    Raises:
        ValueError: all copies of a candidate failed.
    """
    if engine is not None:
        texts = [branch.text_before_output + branch.text for branch in branches]
        return (yield Delegate(engine, _of_texts(texts, ask, replies, copies, reason, params)))
    families = yield [
        # The question stands behind the text, not behind its end.
        Fork(branch, copies, at=branch.num_tokens - (branch.finish_reason == "eos"))
        for branch in branches
    ]
    return (yield from _of_families(families, ask, replies, reason, params))


def _of_texts(
    texts: Sequence[str],
    ask: str,
    replies: Sequence[str],
    copies: int,
    reason: str,
    params: SamplingParams | None,
) -> Steps:
    roots = yield [Prefill(text) for text in texts]
    families = yield [Fork(root, copies) for root in roots]
    yield Prune(roots)
    return (yield from _of_families(families, ask, replies, reason, params))


def _of_families(
    families: Sequence[Sequence[Branch]],
    ask: str,
    replies: Sequence[str],
    reason: str,
    params: SamplingParams | None,
) -> Steps:
    kids = [kid for family in families for kid in family]
    if params is not None:
        yield Extend(kids, params, tokens=reason)
        yield [Rollback(kid, kid.num_tokens - 1) for kid in kids if kid.finish_reason == "eos"]
    sound = [kid for kid in kids if kid.status != "failed"]
    yield Extend(sound, tokens=ask)
    columns = yield [Score(sound, continuation=reply) for reply in replies]
    of_kid = {id(kid): list(row) for kid, row in zip(sound, zip(*columns), strict=True)}
    yield Prune(kids)
    found = [[of_kid[id(kid)] for kid in family if id(kid) in of_kid] for family in families]
    if not all(found):
        raise ValueError("no verdict on a candidate: all its rationales failed")
    return found
