"""`TagParser`: reads a thread token by token, and says what may come next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from parallel_decode.reasoning.fork_join.tags import Tags

NEVER = -1e9
"""Added to the logit of a token that must not come next."""
MAX_DIGITS = 6
"""Of a promise; no context has room for more."""


class Item(NamedTuple):
    """What one path is to work on.

    Attributes:
        tokens: behind the item's tag.
        promise: tokens that its path takes at the most, its given ones included; None for none.
    """

    tokens: tuple[int, ...]
    promise: int | None = None


class Items(NamedTuple):
    """A list is complete: the thread forks here."""

    items: tuple[Item, ...]


class Closed(NamedTuple):
    """A path has ended."""


class Malformed(NamedTuple):
    """Tags that make no sense. They stay in the text, which goes on as text."""

    why: str


Event = Items | Closed | Malformed


class Next(NamedTuple):
    """What the grammar lets come next.

    Attributes:
        only: nothing else may come, where it is given.
        never: of all others.
    """

    only: frozenset[int] | None
    never: frozenset[int]


@dataclass
class TagParser:
    """The state machine of one thread.

    Args:
        in_path: whether the thread is a path, which ends with `tags.close`.
        may_fork: whether `tags.open` has a meaning here.
        max_items: of a list.
    """

    tags: Tags
    in_path: bool = False
    may_fork: bool = True
    max_items: int = 64
    in_list: bool = False
    _items: list[Item] = field(default_factory=list)
    _tokens: list[int] | None = None
    _number: str | None = None

    def feed(self, token: int) -> Event | None:
        """Takes the thread's next token -> what it brings about."""
        return self._feed_list(token) if self.in_list else self._feed_text(token)

    def finish(self) -> Malformed | None:
        """The thread has ended by itself."""
        return self._malformed("a list has no end") if self.in_list else None

    @property
    def next(self) -> Next:
        """What keeps the thread well-formed."""
        tags = self.tags
        others = tags.ids
        if not self.in_list:
            allowed = {tags.open} if self.may_fork else set()
            allowed |= {tags.close} if self.in_path else set()
            return Next(None, others - allowed)
        if tags.item is None:
            if len(self._items) == self.max_items:
                return Next(frozenset(_ids(tags.go)), others)
            return Next(None, others - {tags.go} if self._items else others)
        if self._tokens is None:
            return Next(frozenset((tags.item,)), others)
        ends = _ids(tags.go) | (_ids(tags.item) if len(self._items) + 1 < self.max_items else set())
        if self._number is not None:
            room = MAX_DIGITS - len(self._number)
            more = {token for token, text in tags.digits.items() if len(text) <= room}
            if not self._number:  # a promise of 0 can't be kept
                return Next(frozenset(t for t in more if int(tags.digits[t]) > 0), others)
            return Next(frozenset(more | ends), others)
        if not self._tokens:
            return Next(None, others)
        return Next(None, others - (ends if tags.length is None else {tags.length}))

    def _feed_text(self, token: int) -> Event | None:
        tags = self.tags
        if token not in tags.ids:
            return None
        if token == tags.close and self.in_path:
            return Closed()
        if token != tags.open:
            return Malformed(f"the tag {token} stands in a text")
        if not self.may_fork:
            return Malformed("a list where none may begin")
        if tags.go is None:
            return Items(())
        self.in_list, self._items, self._tokens, self._number = True, [], None, None
        return None

    def _feed_list(self, token: int) -> Event | None:
        tags = self.tags
        if token == tags.go:
            return self._end_list()
        if token == tags.item:
            if self._tokens is not None:
                why = self._end_item()
                if why:
                    return self._malformed(why)
            self._tokens = []
        elif token == tags.length and self._tokens and self._number is None:
            self._number = ""
        elif token in tags.ids:
            return self._malformed(f"the tag {token} stands in a list")
        elif self._number is not None:
            if token not in tags.digits:
                return self._malformed(f"the token {token} stands in a promise")
            self._number += tags.digits[token]
        elif tags.item is None:
            self._items.append(Item((token,)))
        elif self._tokens is None:
            return self._malformed(f"the token {token} stands between a list and its first item")
        else:
            self._tokens.append(token)
        if len(self._items) > self.max_items:
            return self._malformed(f"a list of more than {self.max_items} items")
        return None

    def _end_item(self) -> str:
        """Keeps the item that was being read -> why that can't be, if so."""
        if not self._tokens:
            return "an item is empty"
        promise = None
        if self.tags.length is not None:
            number = self._number or ""
            if len(number) > MAX_DIGITS or int(number or "0") == 0:
                return f"an item promises {number[:MAX_DIGITS] or 'nothing'}"
            promise = int(number)
        self._items.append(Item(tuple(self._tokens), promise))
        self._tokens, self._number = None, None
        return ""

    def _end_list(self) -> Event:
        if self._tokens is not None:
            why = self._end_item()
            if why:
                return self._malformed(why)
        if not self._items:
            return self._malformed("a list is empty")
        if len(self._items) > self.max_items:
            return self._malformed(f"a list of more than {self.max_items} items")
        self.in_list = False
        return Items(tuple(self._items))

    def _malformed(self, why: str) -> Malformed:
        self.in_list = False
        return Malformed(why)


def _ids(tag: int | None) -> set[int]:
    return set() if tag is None else {tag}
