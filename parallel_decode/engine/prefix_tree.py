"""Which full blocks hold which prompt: finds sharing between questions by itself."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

from parallel_decode import _C

BLOCK_SIZE: int = _C.BLOCK_SIZE


class Node:
    """One block of a prefix. `block` is None while the owner is still computing it."""

    __slots__ = ("block", "children", "key", "last_used", "owner", "parent", "pins")

    def __init__(self, key: tuple[int, ...], parent: Node | None) -> None:
        self.key = key
        self.parent = parent
        self.children: dict[tuple[int, ...], Node] = {}
        self.block: int | None = None
        self.owner: object = None
        self.last_used = 0
        self.pins = 0


class PrefixTree:
    """A tree of blocks keyed by their tokens. It holds one reference to each block.

    A prompt that is being computed claims its nodes first, so that a second prompt with the same
    beginning waits for them instead of computing them again.
    """

    def __init__(self, pool: _C.BlockPool) -> None:
        self._pool = pool
        self._root = Node((), None)
        self._clock = 0

    def match(self, tokens: Sequence[int], owner: object) -> tuple[list[int], bool]:
        """(blocks that hold the longest stored prefix, whether more of it is on its way).

        At least one token is left over, so that there is a last token to compute logits from.
        """
        self._clock += 1
        blocks: list[int] = []
        for node in self._walk(tokens, (len(tokens) - 1) // BLOCK_SIZE):
            if node.block is None:
                return blocks, node.owner is not owner
            node.last_used = self._clock
            blocks.append(node.block)
        return blocks, False

    def claim(self, tokens: Sequence[int], owner: object) -> None:
        """Announces that `owner` is about to compute the full blocks of `tokens`."""
        node = self._root
        for index in range(len(tokens) // BLOCK_SIZE):
            key = tuple(tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
            if key not in node.children:
                child = Node(key, node)
                child.owner = owner
                node.children[key] = child
            node = node.children[key]

    def fill(self, tokens: Sequence[int], table: _C.BlockTable, owner: object) -> None:
        """Takes over the full blocks of `table` that `owner` has claimed and computed."""
        entries = table.entries()
        num_full = min(len(tokens), table.num_tokens) // BLOCK_SIZE
        for node, entry in zip(self._walk(tokens, num_full), entries, strict=False):
            if node.block is None and node.owner is owner:
                node.block = int(entry[0])
                node.owner = None
                node.last_used = self._clock
                self._pool.add_reference(node.block)
                self._pool.set_cached(node.block, True)

    def abandon(self, tokens: Sequence[int], owner: object) -> None:
        """Withdraws the claims of `owner` that were not filled."""
        claimed = [
            node
            for node in self._walk(tokens, len(tokens) // BLOCK_SIZE)
            if node.block is None and node.owner is owner
        ]
        for node in reversed(claimed):
            if not node.children:
                self._remove(node)

    def pin(self, tokens: Sequence[int], pins: int) -> int:
        """Adds `pins` (negative: takes away) to the stored nodes of a prefix -> its tokens."""
        num_tokens = 0
        for node in self._walk(tokens, len(tokens) // BLOCK_SIZE):
            if node.block is None:
                break
            node.pins = max(0, node.pins + pins)
            num_tokens += BLOCK_SIZE
        return num_tokens

    def evict(self, num_blocks: int) -> int:
        """Frees up to `num_blocks` blocks that nobody else uses, least recently used first."""
        number = itertools.count()
        leaves = [(n.last_used, next(number), n) for n in self._nodes() if self._evictable(n)]
        heapq.heapify(leaves)
        freed = 0
        while leaves and freed < num_blocks:
            _, _, node = heapq.heappop(leaves)
            self._remove(node)
            freed += 1
            parent = node.parent
            if parent is not None and self._evictable(parent):
                heapq.heappush(leaves, (parent.last_used, next(number), parent))
        return freed

    def num_evictable(self) -> int:
        """Blocks that eviction could free: idle, not pinned and with nothing in use below."""

        def count(node: Node) -> tuple[int, bool]:
            total, all_free = 0, True
            for child in node.children.values():
                below, free = count(child)
                total += below
                all_free = all_free and free
            free = (
                all_free
                and node.pins == 0
                and node.block is not None
                and self._pool.ref_count(node.block) == 1
            )
            return total + free, free

        return sum(count(child)[0] for child in self._root.children.values())

    def _evictable(self, node: Node) -> bool:
        return (
            not node.children
            and node.pins == 0
            and node.block is not None
            and self._pool.ref_count(node.block) == 1
        )

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.key]
        if node.block is not None:
            self._pool.set_cached(node.block, False)
            self._pool.drop_reference(node.block)

    def _walk(self, tokens: Sequence[int], num_blocks: int) -> Iterator[Node]:
        node = self._root
        for index in range(num_blocks):
            found = node.children.get(tuple(tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]))
            if found is None:
                return
            yield found
            node = found

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node
