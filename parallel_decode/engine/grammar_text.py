"""`GrammarText`: how far a branch has come in a text under a grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from parallel_decode.engine.grammar import Grammar


class Matcher(Protocol):
    """A parser's state; the methods are those of `llguidance.LLMatcher`."""

    def deep_copy(self) -> Matcher: ...

    def consume_tokens(self, tokens: list[int], /) -> bool: ...

    def rollback(self, num_tokens: int, /) -> bool: ...

    def is_error(self) -> bool: ...

    def get_error(self) -> str: ...


class GrammarText:
    """The text of one branch: it begins at token `start`, and the matcher has read a part of it.

    Args:
        fresh: a matcher that has read nothing.
    """

    def __init__(self, grammar: Grammar, start: int, fresh: Matcher) -> None:
        self.grammar = grammar
        self.start = start
        self._fresh = fresh
        self._matcher = fresh.deep_copy()
        self._num_read = 0

    def copy(self) -> GrammarText:
        """For a fork."""
        text = GrammarText(self.grammar, self.start, self._fresh)
        text._matcher, text._num_read = self._matcher.deep_copy(), self._num_read
        return text

    def truncate(self, num_tokens: int) -> None:
        """The branch keeps its first `num_tokens` tokens, `start` of them or more."""
        surplus = self._num_read - (num_tokens - self.start)
        if surplus <= 0:
            return
        self._num_read -= surplus
        if self._matcher.is_error() or not self._matcher.rollback(surplus):
            self._matcher, self._num_read = self._fresh.deep_copy(), 0

    def matcher(self, num_tokens: int, recent: Callable[[int], Sequence[int]]) -> Matcher:
        """Its state behind all tokens of the branch.

        Args:
            num_tokens: of the branch.
            recent: a number -> so many of the branch's last tokens.
        """
        unread = num_tokens - self.start - self._num_read
        if unread > 0:
            self._matcher.consume_tokens(list(recent(unread)))
            self._num_read += unread
        return self._matcher

    @property
    def error(self) -> str | None:
        """Why it can't go on, where the parser says so."""
        if not self._matcher.is_error():
            return None
        return self._matcher.get_error().split("\n")[0]
