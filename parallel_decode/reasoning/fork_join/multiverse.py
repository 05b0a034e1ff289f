"""Multiverse: map, process, reduce, with the keys of all paths merged as they are.

Paper: Multiverse: Your Language Models Secretly Decide How to Parallelize and Merge Generation.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.paths import Paths, Positions
from parallel_decode.reasoning.method import Card


@dataclass(frozen=True, kw_only=True)
class Multiverse(ForkJoin):
    """Map: the thread writes a list of goals. Process: a path for each, which do not see each other
    and begin at the same position. Reduce: the thread goes on behind the longest and sees all of
    them; nothing is computed again.

    Native Parallel Reasoner (NPR) has the same positions.

    Args:
        positions: how the paths are joined, see `Paths`; a model knows those it was trained with.
        embeddings: with "thought_embed".
    """

    card: ClassVar = Card(
        "multiverse", "fork-join", "Yang et al., 2025", ("prefill", "fork", "extend", "join")
    )

    positions: Positions = "same_start_max_join"
    embeddings: Tensor | None = None

    def split(self) -> Paths:
        return Paths(self.tags, self.of_paths, self.positions, embeddings=self.embeddings)
