"""`Paths`: one fork and its join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from parallel_decode.engine import (
    Branch,
    Broadcast,
    Extend,
    Fork,
    Join,
    Release,
    Rollback,
    SamplingParams,
    Steps,
)
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.fork_join.fork_log import ForkLog
from parallel_decode.reasoning.fork_join.split import Continuation, RunPath
from parallel_decode.reasoning.fork_join.tag_parser import NEVER, Item
from parallel_decode.reasoning.fork_join.tags import Tags
from parallel_decode.reasoning.gather import gather

Positions = Literal[
    "same_start_max_join", "promised", "disjoint_ranges", "thought_embed", "query_rotate", "text"
]


@dataclass(frozen=True)
class Paths:
    """Runs a path for each item side by side, and joins them.

    Args:
        tags: of the format.
        params: how paths are drawn; max_tokens is what one may draw, so that none is waited for
            longer. A path that is cut there is given its closing tag.
        positions: how the join reads the paths. "same_start_max_join", "thought_embed": they begin
            together, it goes on behind the longest. "promised": each has as many positions as its
            item promises, or max_tokens and its given tokens where it promises nothing.
            "disjoint_ranges": each has as many as that. "query_rotate": they are read as if they
            stood one after the other. "text": they are computed again, one after the other.
        quorum: so many paths must end; None for all. The others may then draw `grace` more tokens
            and are joined as they are. Paths do not fork again then:
            no tag but the closing one can be drawn.
        embeddings: for "thought_embed", [num_paths, num_kv_heads, head_dim] or more rows.

    Raises:
        ValueError: a value is out of range, or nothing is given behind a join of keys.
    """

    tags: Tags
    params: SamplingParams
    positions: Positions = "same_start_max_join"
    quorum: int | None = None
    grace: int = 0
    embeddings: Tensor | None = None

    def __post_init__(self) -> None:
        known = get_args(Positions)
        if self.positions not in known:
            raise ValueError(f"positions must be one of {', '.join(known)}, got {self.positions!r}")
        if (self.embeddings is None) == (self.positions == "thought_embed"):
            raise ValueError("embeddings go with positions 'thought_embed', and are needed there")
        if self.positions != "text" and not self.tags.resume:
            raise ValueError("a join of keys needs a tag `join`, or `after_join`, to go on from")
        at_least(1, quorum=self.quorum)
        if self.grace < 0:
            raise ValueError(f"grace must not be negative, got {self.grace}")

    def __call__(self, parent: Branch, items: Sequence[Item], run: RunPath, log: ForkLog) -> Steps:
        """-> `Continuation` of the joined branch; None where there is none."""
        headers = [self.tags.header(item.tokens) for item in items]
        rooms = [self._room(item, header) for item, header in zip(items, headers, strict=True)]
        if min(rooms) < 1:
            log.malformed["a promise is too short for any text"] += 1
            return None
        try:
            kids = yield self._fork(parent, items, headers)
        except ValueError as error:
            log.malformed[f"a fork was not possible: {error}"] += 1
            return None
        if self.quorum is None:
            programs = [run(*each) for each in zip(kids, headers, rooms, strict=True)]
            kids = yield from gather(programs)  # those that have forked are joined branches now
        else:
            yield from self._race(kids, headers, rooms, log)
        return (yield from self._join(parent, kids, log))

    def _room(self, item: Item, header: Sequence[int]) -> int:
        """Tokens that a path may draw; the closing tag may have to be given besides."""
        if self.positions != "promised" or item.promise is None:
            return self.params.max_tokens
        return min(self.params.max_tokens, item.promise - len(header) - 1)

    def _fork(
        self, parent: Branch, items: Sequence[Item], headers: Sequence[Sequence[int]]
    ) -> Fork:
        if self.positions not in ("promised", "disjoint_ranges"):
            return Fork(parent, len(items))
        longest = self.params.max_tokens + max(map(len, headers)) + 1
        lengths = [longest] * len(items)
        if self.positions == "promised":
            lengths = [item.promise or longest for item in items]
        return Fork(parent, len(items), positions=self.positions, lengths=lengths)

    def _race(
        self,
        kids: Sequence[Branch],
        headers: Sequence[Sequence[int]],
        rooms: Sequence[int],
        log: ForkLog,
    ) -> Steps:
        """A token at a time, until enough have ended."""
        assert self.quorum is not None
        close = () if self.tags.close is None else (self.tags.close,)
        params = replace(
            self.params,
            max_tokens=1,
            min_tokens=0,
            stop_tokens=(*self.params.stop_tokens, *close),
            logit_bias={
                **self.params.logit_bias,
                **dict.fromkeys(self.tags.ids.difference(close), NEVER),
            },
        )
        try:
            yield [Broadcast([kid], header) for kid, header in zip(kids, headers, strict=True)]
        except ValueError as error:
            log.malformed[f"a path could not begin: {error}"] += 1
            return
        grace = self.grace
        for drawn in range(max(rooms)):
            live = [
                kid
                for kid, room in zip(kids, rooms, strict=True)
                if drawn < room and kid.status == "live" and kid.finish_reason in (None, "length")
            ]
            ended = sum(kid.finish_reason in ("stop", "eos") for kid in kids)
            if ended >= self.quorum:
                grace -= 1
            if not live or grace < 0:
                return
            yield Extend(live, params)

    def _join(self, parent: Branch, kids: Sequence[Branch], log: ForkLog) -> Steps:
        kept = [i for i, kid in enumerate(kids) if kid.status in ("live", "finished")]
        sound = [kids[i] for i in kept]
        ended = yield from end_paths(self.tags, sound)
        log.paths += len(kids)
        log.cut += len(sound) - ended
        if not sound:
            return None
        if self.positions == "text":
            join = Join(parent, sound, "text")
        elif self.positions == "query_rotate":
            join = Join(parent, sound, "kv_concat", self.positions)
        else:
            join = Join(parent, sound, "kv_union", self.positions)
        if self.embeddings is not None:
            join.embeddings = self.embeddings[kept]
        try:
            joined = yield join
        except ValueError as error:
            log.malformed[f"a join was not possible: {error}"] += 1
            return None
        if self.positions == "text":
            yield Release([kid for kid in sound if kid.recomputable])
        return Continuation(joined, self.tags.resume)


def end_paths(tags: Tags, paths: Sequence[Branch]) -> Steps:
    """Takes an end of sequence from where a path ends, and gives the closing tag to those without
    it -> how many had ended by themselves."""
    by_eos = [path for path in paths if path.finish_reason == "eos"]
    yield [Rollback(path, path.num_tokens - 1) for path in by_eos]
    if tags.close is None:
        return len(by_eos)
    unclosed = [path for path in paths if path.recent(1) != [tags.close]]
    told = [Broadcast([path], [tags.close]) for path in unclosed]
    try:
        yield told
    except ValueError:  # of those without room for it, which stay as they are
        if all(operation.error is None for operation in told):
            raise
    return len(paths) - len(unclosed) + len(by_eos)
