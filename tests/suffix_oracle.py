"""What `_C.SuffixIndex` must answer, by looking at every stored token each time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Token:
    """A stored token. `context`: what was known to end with it when it was first continued."""

    value: int
    number: int
    parent: "Token | None"
    children: list["Token"] = field(default_factory=list)
    num_ends: int = 0
    context: tuple[int, ...] = ()
    continued_at: int = -1


@dataclass
class Stream:
    num_tokens: int = 0
    end: Token | None = None
    recent: tuple[int, ...] = ()


@dataclass
class Draft:
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    match_length: int = 0
    score: float = 0.0


class SuffixOracle:
    """The same functions as `_C.SuffixIndex`."""

    def __init__(
        self, max_tokens: int, context_lengths: Sequence[int], max_continuations: int
    ) -> None:
        self.max_tokens = max_tokens
        self.context_lengths = context_lengths
        self.max_continuations = max_continuations
        self.stored: list[Token] = []
        self.streams: dict[int, Stream] = {}
        self._num_added = 0
        self._num_opened = 0

    def open(self) -> int:
        return self._add(Stream())

    def _add(self, stream: Stream) -> int:
        self.streams[self._num_opened] = stream
        self._num_opened += 1
        return self._num_opened - 1

    def fork(self, number: int, num_tokens: int) -> int:
        parent = self.streams[number]
        child = Stream(num_tokens, parent.end, parent.recent)
        if num_tokens < parent.num_tokens:
            for _ in range(parent.num_tokens - num_tokens):
                child.end = child.end and child.end.parent
            child.recent = self._path(child.end)
        if child.end is not None:
            child.end.num_ends += 1
        return self._add(child)

    def _path(self, token: Token | None) -> tuple[int, ...]:
        path: tuple[int, ...] = ()
        while token is not None:
            path = (token.value, *path)
            token = token.parent
        return path[-max(self.context_lengths) :]

    def extend(self, number: int, tokens: Sequence[int]) -> None:
        stream = self.streams[number]
        for value in tokens:
            for old in [t for t in self.stored if t.number <= self._num_added - self.max_tokens]:
                self._evict(old)
            token = Token(value, self._num_added, stream.end, num_ends=1)
            self._num_added += 1
            if stream.end is not None:
                stream.end.num_ends -= 1
                if not stream.end.children:
                    stream.end.context = stream.recent
                    stream.end.continued_at = token.number
                stream.end.children.insert(0, token)
            self.stored.append(token)
            stream.end = token
            stream.num_tokens += 1
            stream.recent = (*stream.recent, value)[-max(self.context_lengths) :]

    def _evict(self, old: Token) -> None:
        self.stored.remove(old)
        for child in old.children:
            child.parent = None
        for stream in self.streams.values():
            if stream.end is old:
                stream.end = None

    def truncate(self, number: int, num_tokens: int) -> None:
        stream = self.streams[number]
        if num_tokens == stream.num_tokens:
            return
        if stream.end is not None:
            stream.end.num_ends -= 1
        for _ in range(stream.num_tokens - num_tokens):
            cut = stream.end
            if cut is None:
                break
            stream.end = cut.parent
            if not cut.children and not cut.num_ends:
                self.stored.remove(cut)
                if cut.parent is not None:
                    cut.parent.children.remove(cut)
        stream.num_tokens = num_tokens
        stream.recent = self._path(stream.end)
        if stream.end is not None:
            stream.end.num_ends += 1

    def release(self, number: int) -> None:
        del self.streams[number]

    def draft(
        self,
        number: int,
        max_nodes: int,
        min_prob: float,
        factor: float,
        offset: float,
        unseen: float,
    ) -> Draft:
        best = Draft()
        recent = self.streams[number].recent
        for length in reversed(self.context_lengths):
            if length > len(recent):
                continue
            found = [
                token
                for token in self.stored
                if token.children and token.context[-length:] == recent[-length:]
            ]
            max_depth = max(0, math.floor(factor * length + offset))
            found.sort(key=lambda token: -token.continued_at)
            found = found[: self.max_continuations]
            tree = self._tree(found, length, max_nodes, min_prob, max_depth, unseen)
            if tree.score > best.score:
                best, best.match_length = tree, length
            if sum(len(token.children) for token in found) >= self.max_continuations:
                break
        return best

    def _tree(
        self,
        occurrences: list[Token],
        length: int,
        max_nodes: int,
        min_prob: float,
        max_depth: int,
        unseen: float,
    ) -> Draft:
        def children(
            occurrences: list[Token], parent: int, path: float, depth: int
        ) -> Iterator[tuple[float, float, list[Token], int, int]]:
            found = [child for token in occurrences for child in token.children]
            found = found[: self.max_continuations]
            values = [token.value for token in found]
            total = len(found) + unseen * len(set(values)) / math.sqrt(length + depth - 1)
            for value in sorted(set(values), key=lambda v: (-values.count(v), v)):
                probability = values.count(value) / total
                group = [token for token in found if token.value == value]
                yield path * probability, probability, group, parent, depth

        tree = Draft()
        waiting = list(children(occurrences, -1, 1.0, 1)) if max_depth else []
        while waiting and len(tree.tokens) < max_nodes:
            node = max(waiting, key=lambda child: child[0])  # the first of equals
            if node[0] < min_prob:
                break
            waiting.remove(node)
            path, probability, tokens, parent, depth = node
            tree.tokens.append(tokens[0].value)
            tree.parents.append(parent)
            tree.probabilities.append(probability)
            tree.counts.append(len(tokens))
            tree.score += path
            if depth < max_depth:
                waiting += children(tokens, len(tree.tokens) - 1, path, depth + 1)
        return tree
