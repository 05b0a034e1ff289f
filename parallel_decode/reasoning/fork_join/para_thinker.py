"""ParaThinker: paths on the whole question, each with a token of its own, and a summary of all.

Paper: ParaThinker: Native Parallel Thinking as a New Paradigm to Scale LLM Test-time Compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.fork_join.driver import Driver
from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.paths import Paths, Positions
from parallel_decode.reasoning.fork_join.tag_parser import Item
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card


@dataclass(frozen=True, kw_only=True)
class ParaThinker(ForkJoin):
    """Each copy of the question forks at once into a path for each of `thoughts`; when the first
    has ended, all end; the summary sees the keys of all.

    Args:
        thoughts: token ids, such as those of `<think 1>`, `<think 2>`, ...
        first_finish: False to wait for all.
        positions: how the summary reads them. In the paper "thought_embed"; without the learned
            embeddings they collide in positions, as they do for a model that was trained so.
        embeddings: [num_thoughts, num_kv_heads, head_dim], with "thought_embed".
    """

    card: ClassVar = Card(
        "para-thinker", "fork-join", "Wen et al., 2025", ("prefill", "fork", "extend", "join")
    )

    thoughts: Sequence[int] = field(kw_only=True)
    first_finish: bool = True
    positions: Positions = "same_start_max_join"
    embeddings: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.thoughts:
            raise ValueError("at least one thought is needed")
        if self.embeddings is not None and len(self.embeddings) != len(self.thoughts):
            raise ValueError(f"{len(self.embeddings)} embeddings for {len(self.thoughts)} thoughts")
        super().__post_init__()

    def split(self) -> Paths:
        quorum = 1 if self.first_finish else None
        return Paths(self.tags, self.of_paths, self.positions, quorum, embeddings=self.embeddings)

    def process(self, log: ForkLog) -> "Thoughts":
        return Thoughts(self.driver(log), self.thoughts)


@dataclass(frozen=True)
class Thoughts:
    """P: forks every branch at once; nothing it writes forks it."""

    driver: Driver
    thoughts: Sequence[int]

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        items = [Item((token,)) for token in self.thoughts]
        return (yield from gather([self.driver.fork_at_once(b, items) for b in branches]))
