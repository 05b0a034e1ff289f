"""APAR: a tree of paragraphs, each of which goes on while its details are written.

Paper: APAR: LLMs Can Do Auto-Parallel Auto-Regressive Decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Fork, Release, SamplingParams, Steps
from parallel_decode.reasoning.fork_join.driver import Driver
from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.split import Continuation, RunPath
from parallel_decode.reasoning.fork_join.tag_parser import Item
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.pipeline import Aggregate, Process
from parallel_decode.reasoning.reading import ReadInOrder


@dataclass(frozen=True, kw_only=True)
class APAR(ForkJoin):
    """Where a thread writes the tag `open`, a child writes the details behind it, and the thread
    goes on with the next paragraph, without having seen them. Nothing is joined: the text is that
    of the tree, in reading order. What a child holds is given back when it ends.

    `max_depth` is that of the tree, `max_forks` that of one paragraph after the other.
    """

    card: ClassVar = Card(
        "apar", "fork-join", "Liu et al., 2024", ("prefill", "fork", "extend", "release")
    )

    max_depth: int = 4

    def __post_init__(self) -> None:
        if self.tags.go is not None:
            raise ValueError("a paragraph forks without a list: the tag 'go' must be None")
        super().__post_init__()

    def split(self) -> "Paragraphs":
        return Paragraphs(self.tags, self.of_paths)

    def process(self, log: ForkLog) -> Process:
        return partial(_in_trees, self.driver(log))

    def aggregate(self, log: ForkLog) -> Aggregate:
        return ReadInOrder(self.extract, lambda: log.warnings)


@dataclass(frozen=True)
class Paragraphs:
    """Forks a thread into its details, in front, and itself."""

    tags: Tags
    params: SamplingParams

    def __call__(self, parent: Branch, items: Sequence[Item], run: RunPath, log: ForkLog) -> Steps:
        details, onward = yield Fork(parent, 2)
        log.paths += 1
        return Continuation(onward, beside=[self._write(details, run, log)])

    def _write(self, details: Branch, run: RunPath, log: ForkLog) -> Steps:
        end = yield from run(details, self.tags.header(()), self.params.max_tokens)
        log.cut += end.finish_reason == "length"
        if end.status in ("live", "finished") and end.recomputable:
            yield Release([end])
        return end


def _in_trees(driver: Driver, branches: Sequence[Branch]) -> Steps:
    """P: runs the threads -> the branches in which their trees are rooted."""
    yield from driver(branches)
    return list(branches)
