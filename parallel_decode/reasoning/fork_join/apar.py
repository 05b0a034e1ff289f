"""APAR: a tree of paragraphs, each of which goes on while its details are written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Fork, Release, SamplingParams, Steps
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.split import Continuation, RunPath
from parallel_decode.reasoning.fork_join.tag_parser import Item
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.fork_join.threads import Threads
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.pipeline import Aggregate, Process, Question
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.vote import tally


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
        return partial(_in_trees, self.threads(log))

    def aggregate(self, log: ForkLog) -> Aggregate:
        return ReadInOrder(self.extract, log)


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


def _in_trees(threads: Threads, branches: Sequence[Branch]) -> Steps:
    """P: runs the threads -> the branches in which their trees are rooted."""
    yield from threads(branches)
    return list(branches)


@dataclass(frozen=True)
class ReadInOrder:
    """A: reads each tree from its root down, details first, and lets the answers vote."""

    extract: Extractor
    log: ForkLog

    def __call__(self, question: Question, branches: Sequence[Branch]) -> Steps:
        orders = [list(_walk(branch)) for branch in branches]
        texts = ["".join(node.own_text for node in order) for order in orders]
        answers = answers_of(self.extract, texts)
        votes = tally(answers, [1.0] * len(answers))
        ids = [id(branch) for branch in branches]
        weights = {key: float(a is not None) for key, a in zip(ids, answers, strict=True)}
        solution = Solution.of(
            branches,
            dict(zip(ids, answers, strict=True)),
            weights,
            votes,
            votes[0][0] if votes else None,
        )
        solution.paths = [
            _whole(path, text, order)
            for path, text, order in zip(solution.paths, texts, orders, strict=True)
        ]
        solution.warnings += self.log.warnings
        return solution
        yield  # a program, although it asks for nothing


def _walk(branch: Branch) -> Iterator[Branch]:
    yield branch
    for child in branch.children:
        yield from _walk(child)


def _whole(path: Path, text: str, order: Sequence[Branch]) -> Path:
    """The path of a tree's root with what all of it has written."""
    own = [(branch, len(branch.own_tokens)) for branch in order]
    records = [record for branch, n in own for record in branch.records[len(branch.records) - n :]]
    return replace(
        path,
        text=text,
        tokens=[token for branch, _ in own for token in branch.own_tokens],
        logprobs=[record.logprob for record in records],
    )
