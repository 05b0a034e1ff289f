"""`Tags`: the control tokens of a fork-join format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel_decode.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tags:
    """Token ids; each tag is one token, as models that fork have learned them.

    A thread writes `open`, a list of items and `go`; a path a piece follows, which begins with
    `path`, its item and `after_path`, and writes text that ends with `close`; behind the join comes
    `join` with `after_join`.

    Args:
        open: begins a list; None where a thread can't fork by itself.
        go: ends a list; None where `open` forks at once, without a list.
        item: begins an item of several tokens; None where each token of a list is one.
        length: stands in an item in front of the number of tokens that its path promises to take,
            its first and last tag included; None for no promises. Needs `item`.
        path: None where an item stands for itself, such as `<think 1>`.
        close: None where a path ends with the end of sequence alone.
        join: None to give nothing but `after_join`.
        digits: token -> digits that it stands for; needed with `length`.

    Raises:
        ValueError: two tags are the same token, or one lacks another that it needs.
    """

    open: int | None = None
    go: int | None = None
    item: int | None = None
    length: int | None = None
    path: int | None = None
    close: int | None = None
    join: int | None = None
    after_path: tuple[int, ...] = ()
    after_join: tuple[int, ...] = ()
    digits: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [tag for tag in self._slots if tag is not None]
        if len(set(given)) < len(given):
            raise ValueError(f"each tag must be a token of its own, got {given}")
        for name, needed, other in (
            ("go", "open", self.open),
            ("item", "go", self.go),
            ("length", "item", self.item),
            ("length", "digits", self.digits or None),
        ):
            if getattr(self, name) is not None and other is None:
                raise ValueError(f"the tag {name!r} needs {needed!r}")

    @classmethod
    def named(
        cls, tokenizer: Tokenizer, *, after_path: str = "", after_join: str = "", **names: str
    ) -> Tags:
        """Finds the tags in a vocabulary.

        Args:
            names: of the tags above, as the vocabulary writes them.

        Raises:
            ValueError: one is no token of the vocabulary.
        """
        ids = {}
        for field_name, name in names.items():
            token = tokenizer.token_id(name)
            if token is None:
                raise ValueError(f"the vocabulary has no token {name!r} for the tag {field_name!r}")
            ids[field_name] = token
        digits: dict[int, str] = {}
        if "length" in ids:
            texts = ((t, tokenizer.token_bytes(t)) for t in range(tokenizer.vocab_size))
            digits = {t: text.decode() for t, text in texts if text.isdigit()}
        return cls(
            **ids,
            after_path=tuple(tokenizer.encode(after_path, add_bos=False)),
            after_join=tuple(tokenizer.encode(after_join, add_bos=False)),
            digits=digits,
        )

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(tag for tag in self._slots if tag is not None)

    @property
    def _slots(self) -> tuple[int | None, ...]:
        return (self.open, self.go, self.item, self.length, self.path, self.close, self.join)

    def header(self, item: tuple[int, ...]) -> tuple[int, ...]:
        """What the path of an item is given to begin with."""
        return (*_one(self.path), *item, *self.after_path)

    @property
    def resume(self) -> tuple[int, ...]:
        """What is given behind a join."""
        return (*_one(self.join), *self.after_join)


def _one(tag: int | None) -> tuple[int, ...]:
    return () if tag is None else (tag,)
