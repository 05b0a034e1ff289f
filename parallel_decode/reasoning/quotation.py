"""`Quotation`: texts of others, as they are shown to who reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class Quotation:
    """A frame around texts that are quoted one after the other.

    Args:
        frame: with {texts}, where the quotes go, and what else a method fills in.
        quote: of one text, with {number}, from 1, and {text}.
    """

    frame: Template
    quote: Template = field(default_factory=partial(Template.named, "quote"))

    def __post_init__(self) -> None:
        self.quote.require("number", "text")

    @classmethod
    def named(cls, frame: str, quote: str = "quote") -> "Quotation":
        """Of two templates of this package."""
        return cls(Template.named(frame), Template.named(quote))

    def require(self, *places: str) -> None:
        """ValueError unless the frame has {texts} and these places."""
        self.frame.require("texts", *places)

    def of(self, texts: Sequence[str], **values: str) -> str:
        quotes = [
            self.quote.fill(number=str(number), text=text) for number, text in enumerate(texts, 1)
        ]
        return self.frame.fill(texts="".join(quotes), **values)
