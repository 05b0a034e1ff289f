"""Adaptive parallel reasoning: threads with a context of their own, which return messages.

Paper: Learning Adaptive Parallel Reasoning with Language Models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from parallel_decode.engine import Branch, Prefill, Prune, SamplingParams, Steps
from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.paths import end_paths
from parallel_decode.reasoning.fork_join.split import Continuation, RunPath
from parallel_decode.reasoning.fork_join.tag_parser import Item
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card


@dataclass(frozen=True, kw_only=True)
class APR(ForkJoin):
    """spawn: the thread writes a list of messages; each begins a child that knows its message and
    nothing else. join: what the children write is appended to the thread as text.

    Args:
        root: tokens that a context begins with, such as the beginning of a sequence.
    """

    card: ClassVar = Card("apr", "fork-join", "Pan et al., 2025", ("prefill", "fork", "extend"))

    root: tuple[int, ...] = ()

    def split(self) -> "Spawn":
        return Spawn(self.tags, self.of_paths, self.root)


@dataclass(frozen=True)
class Spawn:
    """Runs a child for each message, and tells the thread what each has written."""

    tags: Tags
    params: SamplingParams
    root: tuple[int, ...]

    def __call__(self, parent: Branch, items: Sequence[Item], run: RunPath, log: ForkLog) -> Steps:
        prompts = [[*self.root, *self.tags.header(item.tokens)] for item in items]
        try:
            children = yield [Prefill(prompt) for prompt in prompts]
        except ValueError as error:
            log.malformed[f"a child could not begin: {error}"] += 1
            return None
        programs = [run(child, (), self.params.max_tokens) for child in children]
        children = yield from gather(programs)
        sound = [child for child in children if child.status != "failed"]
        ended = yield from end_paths(self.tags, sound)
        log.paths += len(children)
        log.cut += len(sound) - ended
        begin = [] if self.tags.path is None else [self.tags.path]
        told = [token for child in sound for token in (*begin, *child.output_tokens)]
        yield Prune(children)
        return Continuation(parent, [*told, *self.tags.resume])
