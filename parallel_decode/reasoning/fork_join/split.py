"""`Split`: what a thread does where it forks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.tag_parser import Item

RunPath = Callable[[Branch, Sequence[int], int], Steps]
"""(branch, tokens that it is given first, tokens that it may draw) -> program of a path."""


class Continuation(NamedTuple):
    """How a thread goes on.

    Attributes:
        branch: that it is from now on.
        given: tokens that it is given first.
        beside: programs that run while it goes on.
    """

    branch: Branch
    given: Sequence[int] = ()
    beside: Sequence[Steps] = ()


Split = Callable[[Branch, Sequence[Item], RunPath, ForkLog], Steps]
"""(thread, items, ...) -> program that returns a `Continuation`; None where the thread goes on as
if it had not forked."""
