"""`KVRoom`: the KV blocks that the nodes of one search may hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from parallel_decode.engine import Branch, Release, Steps
from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.search.action import STEP, Action
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.search.node import SearchNode


@dataclass(frozen=True)
class Job:
    """`count` children of a node, made by an action."""

    node: SearchNode
    count: int
    action: Action = STEP


Wave = list[tuple[int, Job]]
"""Jobs, or parts of them, that run together, each with the number of its job."""


class KVRoom:
    """Drops the blocks of the least valuable leaves when the nodes of a search hold too many.

    A dropped node keeps its tokens. The engine computes its keys again when it is taken up, from
    the nearest node above that is stored; the output is the same. Nodes that are being expanded are
    pinned. Jobs that do not fit at once run in waves, which changes no draw either.

    Blocks are counted from lengths, whatever the pool looks like, so that a search repeats: a
    node's own tokens take the blocks that they touch. It is an upper bound. The probes of a scorer
    come on top while they run.

    Args:
        max_blocks: limit; None for none.
        growth: how long a step can be.
    """

    def __init__(self, max_blocks: int | None, growth: Growth) -> None:
        at_least(1, kv_blocks=max_blocks)
        self._max_blocks = max_blocks
        self._growth = growth
        self._held: dict[int, SearchNode] = {}
        self.num_dropped = 0

    def hold(self, nodes: Iterable[SearchNode]) -> None:
        """These have been computed."""
        self._held |= {id(node): node for node in nodes}

    def next_wave(self, jobs: Sequence[Job], left: list[int]) -> Steps:
        """Makes room for as many children as fit -> that part of the jobs.

        Args:
            left: children that each job still has to get; reduced by those of the wave.
        """
        if self._max_blocks is None:
            wave = [(i, _reduced(job, left[i])) for i, job in enumerate(jobs) if left[i]]
            left[:] = [0] * len(left)
            return wave
        wave, pinned, new = self._fitting(jobs, left, self._max_blocks)
        yield Release(self._victims(pinned, self._max_blocks - new))
        self.hold(pinned)
        return wave

    def _fitting(
        self, jobs: Sequence[Job], left: list[int], max_blocks: int
    ) -> tuple[Wave, list[SearchNode], int]:
        """As many children as fit if all nodes but their parents go -> these jobs, the parents, and
        the blocks of the children."""
        wave: Wave = []
        pinned: list[SearchNode] = []
        new = 0
        for number, job in enumerate(jobs):
            if not left[number]:
                continue
            each = self._blocks_of_child(job)
            room = max_blocks - new - _blocks([*pinned, job.node])
            count = min(left[number], max(0, room) // each)
            if count:
                pinned.append(job.node)
                wave.append((number, replace(job, count=count)))
                new += count * each
                left[number] -= count
            elif not wave:
                needed = each + _blocks([job.node])
                raise ValueError(
                    f"kv_blocks={max_blocks} does not hold one more step of"
                    f" {job.node.branch!r}, which takes {needed} blocks"
                )
        return wave, pinned, new

    def _victims(self, pinned: Sequence[SearchNode], room: int) -> list[Branch]:
        """What to drop so that the nodes that stay take `room` blocks at the most."""
        self._held = {
            key: node
            for key, node in self._held.items()
            if node.branch.status not in ("pruned", "failed")
        }
        pins = {id(node) for node in pinned}
        dropped = []
        while _blocks([*self._held.values(), *pinned]) > room:
            above = {id(node.parent) for held in self._held.values() for node in held.path()}
            leaves = [n for key, n in self._held.items() if key not in above and key not in pins]
            if not leaves:  # what is left lies above what is pinned
                break
            worst = min(leaves, key=_worth)
            dropped.append(worst.branch)
            del self._held[id(worst)]
        self.num_dropped += len(dropped)
        return dropped

    def _blocks_of_child(self, job: Job) -> int:
        begin = job.node.branch.num_tokens
        return _span(begin, begin + job.action.max_tokens(self._growth))


def _reduced(job: Job, count: int) -> Job:
    return job if count == job.count else replace(job, count=count)


def _worth(node: SearchNode) -> float:
    return float("-inf") if node.branch.score is None else node.branch.score


def _span(begin: int, end: int) -> int:
    """Blocks that the tokens [begin, end) touch."""
    return -(-end // BLOCK_SIZE) - begin // BLOCK_SIZE


def _blocks(nodes: Iterable[SearchNode]) -> int:
    """Blocks of some nodes and all that they share, each node's once."""
    needed = {id(node): node for leaf in nodes for node in leaf.path()}
    return sum(_span(n.branch.fork_length, n.branch.num_tokens) for n in needed.values())
