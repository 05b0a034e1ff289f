"""Monte Carlo tree search over steps, with several leaves at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.search.action import STEP, Action
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.kv_room import Job, KVRoom
from parallel_decode.reasoning.search.node import SearchNode
from parallel_decode.reasoning.search.step_search import StepSearch
from parallel_decode.reasoning.weighting import Weighting, by_score


def uct(node: SearchNode, exploration: float, worst: float) -> float:
    """Q + c·sqrt(ln N_parent / N) (Kocsis and Szepesvári, 2006). An evaluation in flight counts as
    a visit that gave `worst`, so that leaves chosen together spread (virtual loss).

    Args:
        worst: the lowest value seen so far.
    """
    assert node.parent is not None
    visits = node.visits + node.in_flight
    if not visits:
        return math.inf
    mean = (node.total + node.in_flight * worst) / visits
    above = max(1, node.parent.visits + node.parent.in_flight)
    return mean + exploration * math.sqrt(math.log(above) / visits)


@dataclass(frozen=True)
class MCTS(StepSearch):
    """Selects leaves by UCT, expands them by all `actions`, values the children by the scorer, and
    backs the values up. All leaves of a batch are expanded at once. Every whole solution that came
    up votes by its value.

    Args:
        expansions: leaves that are expanded in all.
        batch: leaves that are selected before the first of them is expanded.
        expand: children that each action makes.
        exploration: c of `uct`.
        actions: named ways to make children: RAP has one step, rStar `RSTAR_ACTIONS`.
        simulate: value a child by a sample of the rest of its solution, which is a candidate, too.
        kv_blocks: see `KVRoom`.
        scorer, step, max_steps, params, extract, weigh: see `StepSearch`.
    """

    card: ClassVar = Card(
        "mcts",
        "structured search",
        "Hao et al., 2023; Qi et al., 2024",
        ("prefill", "fork", "extend", "prune"),
    )

    expansions: int = 32
    batch: int = 4
    expand: int = 3
    exploration: float = 1.0
    actions: tuple[Action, ...] = (STEP,)
    simulate: bool = True
    kv_blocks: int | None = None
    weigh: Weighting = field(default=by_score, kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, expansions=self.expansions, batch=self.batch, expand=self.expand)
        if not 0 <= self.exploration < math.inf:
            raise ValueError(f"exploration must not be negative, got {self.exploration}")
        if not self.actions:
            raise ValueError("actions must not be empty")
        KVRoom(self.kv_blocks, self.growth)
        super().__post_init__()

    def explorer(self, question: Branch) -> Explorer:
        return Explorer(question, self.growth, self.scorer, self.kv_blocks)

    def search(self, explorer: Explorer) -> Steps:
        finished: list[SearchNode] = []
        worst = math.inf
        left = self.expansions
        while left and not explorer.cut:
            leaves = list(self._select(explorer, min(self.batch, left), worst))
            if not leaves:
                break
            left -= len(leaves)
            jobs = [Job(leaf, self.expand, action) for leaf in leaves for action in self.actions]
            families = yield from explorer.expand(jobs)
            for leaf in leaves:
                for node in leaf.path():
                    node.in_flight -= 1
            kids = [kid for family in families for kid in family]
            values = [kid.value for kid in kids]
            finished += [kid for kid in kids if kid.ended]
            if self.simulate:
                values, rollouts = yield from explorer.simulate(kids)
                finished += rollouts
            for kid, value in zip(kids, values, strict=True):
                kid.back_up(value)
            worst = min([worst, *values])
        nodes = list(explorer.root.walk())[1:]
        for node in nodes:
            if node.visits:
                node.branch.score = node.mean
        leaves = [node for node in nodes if not node.children and not node.ended]
        return (yield from explorer.conclude(finished, leaves))

    def _select(self, explorer: Explorer, n: int, worst: float) -> Iterator[SearchNode]:
        """Up to n leaves, each counted as in flight on its path."""
        for _ in range(n):
            open_nodes = _open_nodes(explorer)
            node = explorer.root
            if id(node) not in open_nodes:
                return
            while node.children:
                choice = [kid for kid in node.children if id(kid) in open_nodes]
                node = max(choice, key=lambda kid: uct(kid, self.exploration, worst))
            for above in node.path():
                above.in_flight += 1
            yield node


def _open_nodes(explorer: Explorer) -> set[int]:
    """ids of the nodes on a way to a leaf that can be expanded now."""
    found: set[int] = set()
    for node in explorer.root.walk():
        if not node.children and explorer.can_grow(node) and not node.in_flight:
            found |= {id(above) for above in node.path()}
    return found
