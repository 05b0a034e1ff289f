"""`Timeline`: what a program had generated and the branches held, step by step."""

from typing import NamedTuple

MAX_POINTS = 256


class Moment(NamedTuple):
    """After a step of the model.

    Attributes:
        step: number of the program's steps so far.
        generated_tokens: by the program so far.
        blocks: KV blocks that branches hold, those of other programs too.
    """

    step: int
    generated_tokens: int
    blocks: int


class Timeline:
    """At most `MAX_POINTS` moments, evenly spread over the steps: when there are more, every other
    one goes."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self._stride = 1

    def add(self, step: int, generated_tokens: int, blocks: int) -> None:
        """See `Moment`."""
        if step % self._stride:
            return
        self.moments.append(Moment(step, generated_tokens, blocks))
        if len(self.moments) > MAX_POINTS:
            self._stride *= 2
            self.moments = [m for m in self.moments if m.step % self._stride == 0]
