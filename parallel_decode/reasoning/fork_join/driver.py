"""`Driver`: runs the control tags of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.engine.operation import Extend
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.split import Split
from parallel_decode.reasoning.fork_join.tag_parser import (
    NEVER,
    Closed,
    Item,
    Items,
    Malformed,
    TagParser,
)
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.gather import gather


@dataclass(frozen=True)
class Driver:
    """P: samples each branch and forks it where its tags say so, until it ends.

    Tags that make no sense stay in the text, are counted in `log`, and the thread goes on as text.
    With `enforce` none comes: what may not come next can't be drawn.

    Args:
        split: what happens where a thread forks.
        params: of the branches themselves; max_tokens is that of a whole branch, without its paths.
        path_params: of paths.
        max_forks: of one thread.
        max_depth: of paths within paths; 0 for no forks at all.
        max_items: of a list.
    """

    tags: Tags
    split: Split
    params: SamplingParams
    path_params: SamplingParams
    max_forks: int = 16
    max_depth: int = 1
    max_items: int = 64
    enforce: bool = True
    log: ForkLog = field(default_factory=ForkLog)

    def __post_init__(self) -> None:
        at_least(0, max_forks=self.max_forks, max_depth=self.max_depth)
        at_least(1, max_items=self.max_items)

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        limit = self.params.max_tokens
        return (yield from gather([self._run(branch, (), limit, 0) for branch in branches]))

    def fork_at_once(self, branch: Branch, items: Sequence[Item]) -> Steps:
        """Forks a branch into paths for these items, and then no more -> the joined one's end."""
        onward = yield from self.split(branch, items, partial(self._run, depth=1), self.log)
        if onward is None:
            return branch
        limit = self.params.max_tokens
        return (yield from self._run(onward.branch, onward.given, limit, 0, self.max_forks))

    def _run(
        self, branch: Branch, given: Sequence[int], left: int, depth: int, forks: int = 0
    ) -> Steps:
        """A thread to its end -> the branch that it is then."""
        while True:
            may_fork = forks < self.max_forks and depth < self.max_depth
            parser = TagParser(self.tags, depth > 0, may_fork, self.max_items)
            before = branch.num_tokens + len(given)
            items = yield from self._read(branch, parser, given, left)
            if items is None:
                return branch
            left -= branch.num_tokens - before
            forks += 1
            path = partial(self._run, depth=depth + 1)
            onward = yield from self.split(branch, items, path, self.log)
            given = ()
            if onward is None:
                continue
            branch, given = onward.branch, onward.given
            if onward.beside:
                rest = self._run(branch, given, left, depth, forks)
                return (yield from gather([rest, *onward.beside]))[0]

    def _read(self, branch: Branch, parser: TagParser, given: Sequence[int], left: int) -> Steps:
        """Samples up to a fork -> its items; None where the thread ends."""
        while left > 0:
            params = self._next_params(parser, left)
            begin = branch.num_tokens + len(given)
            try:
                yield Extend([branch], params, tokens=given)
            except ValueError as error:
                if not given:
                    raise
                self.log.malformed[f"a thread could not go on: {error}"] += 1
                return None
            given = ()
            new = branch.recent(branch.num_tokens - begin)
            left -= len(new)
            for token in new[:-1] if branch.finish_reason == "eos" else new:
                event = parser.feed(token)
                if isinstance(event, Items):
                    return event.items
                if isinstance(event, Closed):
                    return None
                if isinstance(event, Malformed):
                    self.log.malformed[event.why] += 1
            stopped_to_list = branch.finish_reason == "stop" and new[-1:] == [self.tags.open]
            if branch.finish_reason == "length":
                if len(new) < params.max_tokens:  # the end of the context
                    break
            elif not (stopped_to_list and parser.in_list):
                break
        if (event := parser.finish()) is not None:
            self.log.malformed[event.why] += 1
        return None

    def _next_params(self, parser: TagParser, left: int) -> SamplingParams:
        params = self.path_params if parser.in_path else self.params
        if parser.in_list:
            # Token by token, as what may come next changes; nothing else ends a list.
            params = replace(
                params, max_tokens=1, min_tokens=int(self.enforce), stop=(), stop_tokens=()
            )
        else:
            tags = {self.tags.open} if parser.may_fork else set()
            tags |= {self.tags.close} if parser.in_path else set()
            stops = (*params.stop_tokens, *(tag for tag in tags if tag is not None))
            least = min(params.min_tokens, left)
            params = replace(params, max_tokens=left, min_tokens=least, stop_tokens=stops)
        if not self.enforce:
            return params
        only, never = parser.next
        bias = {**params.logit_bias, **dict.fromkeys(never - (only or frozenset()), NEVER)}
        allowed = params.allowed_tokens if only is None else only
        return replace(params, logit_bias=bias, allowed_tokens=allowed)
