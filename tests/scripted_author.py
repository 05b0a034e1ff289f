"""An author without a model: what it says is a function of what it is shown."""

from collections.abc import Callable
from dataclasses import dataclass

from parallel_decode.reasoning import Author, Reply


@dataclass(frozen=True)
class Scripted(Author):
    """`says` gives the text for what is shown; None is a failure."""

    says: Callable[[str], str | None] = str

    def write(self, question, shown):
        yield from ()
        texts = [self.says(text) for text in shown]
        return [Reply("", error="planted") if t is None else Reply(t) for t in texts]


def in_turn(*texts: str | None) -> Scripted:
    """Says one text after the other, whatever it is shown, and begins again."""
    left: list[str | None] = []

    def says(shown: str) -> str | None:
        if not left:
            left.extend(texts)
        return left.pop(0)

    return Scripted(says=says)
