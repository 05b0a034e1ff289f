"""`ForkJoin`: what the methods share whose model forks and joins by control tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.fork_join.driver import Driver
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.split import Split
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.method import Method
from parallel_decode.reasoning.pipeline import Aggregate, Pipeline, Process, Question
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies


@dataclass(frozen=True, kw_only=True)
class ForkJoin(Method):
    """D copies the question, P runs each copy as its tags say, A lets the answers vote.

    It asks for a model that was trained on the format. Malformed tags, paths that were cut, forks
    and joins for which there was no room: the text goes on, and the solution has a warning.

    Args:
        tags: of the format.
        n: samples.
        params: how a sample is drawn; max_tokens is without its paths.
        path_params: how paths are drawn; max_tokens bounds each. None for `params`.
        max_forks: of one thread.
        max_depth: of paths within paths.
        max_items: of a list.
        enforce: whether nothing can be drawn that breaks the grammar of the tags.
        extract: text of a sample to its answer.
    """

    tags: Tags
    n: int = 1
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=1024))
    path_params: SamplingParams | None = None
    max_forks: int = 16
    max_depth: int = 1
    max_items: int = 64
    enforce: bool = True
    extract: Extractor = last_number

    @abstractmethod
    def split(self) -> Split:
        """What happens where a thread forks."""

    def pipeline(self) -> Pipeline:
        log = ForkLog()
        return Pipeline(Copies(self.n), self.process(log), self.aggregate(log))

    def process(self, log: ForkLog) -> Process:
        return self.driver(log)

    def aggregate(self, log: ForkLog) -> Aggregate:
        return Concluded(self.extract, log)

    def driver(self, log: ForkLog) -> Driver:
        return Driver(
            self.tags,
            self.split(),
            self.params,
            self.of_paths,
            self.max_forks,
            self.max_depth,
            self.max_items,
            self.enforce,
            log,
        )

    @property
    def of_paths(self) -> SamplingParams:
        return self.path_params or self.params


@dataclass(frozen=True)
class Concluded:
    """A: a vote, and what became of the tags."""

    extract: Extractor
    log: ForkLog

    def __call__(self, question: Question, branches: Sequence[Branch]) -> Steps:
        solution = yield from Select(self.extract)(question, branches)
        return replace(solution, warnings=[*solution.warnings, *self.log.warnings])
