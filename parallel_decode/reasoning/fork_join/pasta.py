"""PASTA: chunks that promise their length, so that their positions are known before they are.

Paper: Learning to Keep a Promise: Scaling Language Model Decoding Parallelism with Learned
Asynchronous Decoding.
"""

from dataclasses import dataclass
from typing import ClassVar

from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.paths import Paths
from parallel_decode.reasoning.method import Card


@dataclass(frozen=True, kw_only=True)
class Pasta(ForkJoin):
    """The thread writes a list of promises, each a topic and a number of tokens, and waits for what
    was promised; each chunk has as many positions as it promised, one range after the other.

    A chunk that does not end within its promise is cut there. In the paper a chunk begins as soon
    as its promise is written; here all begin with the tag that waits for them.
    """

    card: ClassVar = Card(
        "pasta", "fork-join", "Jin et al., 2025", ("prefill", "fork", "extend", "join")
    )

    def __post_init__(self) -> None:
        if self.tags.length is None:
            raise ValueError("a promise needs the tag 'length'")
        super().__post_init__()

    def split(self) -> Paths:
        return Paths(self.tags, self.of_paths, "promised")
