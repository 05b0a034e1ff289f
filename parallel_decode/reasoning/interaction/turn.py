"""Turns of branches that are told something between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Broadcast, Extend, SamplingParams, Steps


@dataclass(frozen=True)
class Turn:
    """P: `params.max_tokens` more tokens of each branch that has not ended."""

    params: SamplingParams

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        yield Extend(going_on(branches), self.params)
        return list(branches)


def going_on(branches: Sequence[Branch]) -> list[Branch]:
    """Those that did not come to an end of their own: they begin, or reached the end of a turn."""
    return [b for b in branches if b.status == "live" and b.finish_reason in (None, "length")]


def tell(branches: Sequence[Branch], texts: Sequence[str]) -> Steps:
    """Appends one text to each idle branch -> those that have room for it; the others stay as they
    are. The text is computed when the branch next runs."""
    told = [Broadcast([branch], text) for branch, text in zip(branches, texts, strict=True)]
    try:
        yield told
    except ValueError:
        if all(op.error is None for op in told):
            raise
    return [branch for branch, op in zip(branches, told, strict=True) if op.error is None]
