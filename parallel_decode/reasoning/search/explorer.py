"""`Explorer`: grows and values the nodes of one search."""

from collections.abc import Sequence

from parallel_decode.engine import Branch, Extend, Fork, Prune, Release, Steps
from parallel_decode.reasoning.scorer import Scorer, score_branches
from parallel_decode.reasoning.search.action import WHOLE, Action
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.search.kv_room import Job, KVRoom, Wave
from parallel_decode.reasoning.search.node import SearchNode, branches_of


class Explorer:
    """The tree of one question.

    Args:
        branch: holds the question.
        growth: how steps are drawn.
        scorer: values nodes, higher is better.
        kv_blocks: KV blocks that the nodes may hold, see `KVRoom`; None for no limit.

    Attributes:
        root: the question's node.
        cut: whether the budget or somebody stopped a branch: the search is over.
    """

    def __init__(
        self, branch: Branch, growth: Growth, scorer: Scorer, kv_blocks: int | None = None
    ) -> None:
        self.root = SearchNode(branch)
        self.cut = False
        self.room = KVRoom(kv_blocks, growth)
        self._growth = growth
        self._scorer = scorer
        self._last_grown: list[Branch] = []
        self.room.hold([self.root])

    def can_grow(self, node: SearchNode) -> bool:
        return not node.ended and node.depth < self._growth.max_steps

    def expand(self, jobs: Sequence[Job], attach: bool = True) -> Steps:
        """Makes children and values them, all in one batch -> one list of children a job, in which
        branches that failed are missing.

        Args:
            attach: False for samples that are looked at and not grown: their parents do not count
                them as children.
        """
        families: list[list[SearchNode]] = [[] for _ in jobs]
        left = [job.count for job in jobs]
        self._last_grown = []
        while any(left):
            wave = yield from self.room.next_wave(jobs, left)
            kids = yield from self._grow(wave)
            grown = [node for family in kids for node in family]
            yield from score_branches(self._scorer, branches_of(grown))
            self.room.hold(grown)
            for (number, _), family in zip(wave, kids, strict=True):
                families[number] += family
        if attach:
            for job, family in zip(jobs, families, strict=True):
                job.node.children = [*job.node.children, *family]
        return families

    def _grow(self, wave: Wave) -> Steps:
        """-> one list of children a job of the wave."""
        families = yield [Fork(job.node.branch, job.count) for _, job in wave]
        by_action: dict[Action, list[Branch]] = {}
        for (_, job), family in zip(wave, families, strict=True):
            by_action.setdefault(job.action, []).extend(family)
            self._last_grown += family
        operations: list[Extend] = [
            action.operation(self._growth, branches) for action, branches in by_action.items()
        ]
        yield operations
        self.cut = self.cut or any(map(self._growth.was_cut, self._last_grown))
        return [
            [
                job.node.child(branch, job.action.ends(self._growth, branch), job.action.name)
                for branch in family
                if branch.status != "failed"
            ]
            for (_, job), family in zip(wave, families, strict=True)
        ]

    def simulate(self, nodes: Sequence[SearchNode]) -> Steps:
        """One sample of the rest of each node that has not ended -> the values of the nodes by
        these samples, and those samples that came to an end, as nodes that hold no keys."""
        jobs = [Job(node, 1, WHOLE) for node in nodes if not node.ended]
        families = yield from self.expand(jobs, attach=False)
        samples = [node for family in families for node in family]
        yield Release(branches_of(samples))
        values = {id(sample.parent): sample.value for sample in samples}
        ended = [sample for sample in samples if sample.ended]
        return [values.get(id(node), node.value) for node in nodes], ended

    def conclude(self, ended: Sequence[SearchNode], live: Sequence[SearchNode]) -> Steps:
        """-> the branches to choose from: those that ended; where none did, those that did not.
        Of nodes that are neither the caller has taken care."""
        if ended:
            yield Prune(branches_of(live))
        return branches_of(ended) or branches_of(live) or self._last_grown or [self.root.branch]
