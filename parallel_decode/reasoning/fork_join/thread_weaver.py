"""ThreadWeaver: outlined threads, joined as text, as an engine without joins of keys can do it.

Paper: ThreadWeaver: Adaptive Threading for Efficient Parallel Reasoning in Language Models.
"""

from dataclasses import dataclass
from typing import ClassVar

from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.paths import Paths
from parallel_decode.reasoning.method import Card


@dataclass(frozen=True, kw_only=True)
class ThreadWeaver(ForkJoin):
    """The thread writes outlines; each is worked out side by side; their texts stand one after the
    other, computed again, so that a later one has seen those before it."""

    card: ClassVar = Card(
        "thread-weaver", "fork-join", "Lian et al., 2025", ("prefill", "fork", "extend", "join")
    )

    def split(self) -> Paths:
        return Paths(self.tags, self.of_paths, "text")
