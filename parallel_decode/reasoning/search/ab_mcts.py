"""AB-MCTS: wider or deeper, decided anew at every node by Thompson sampling."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from parallel_decode.engine import Branch, Seed, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.search.action import STEP, Action
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.kv_room import Job, KVRoom
from parallel_decode.reasoning.search.node import SearchNode
from parallel_decode.reasoning.search.posterior import GaussianPrior, Prior
from parallel_decode.reasoning.search.step_search import StepSearch
from parallel_decode.reasoning.weighting import Weighting, by_score


@dataclass
class _Rewards:
    """What a node has seen: of children that it generated, and of what came below each child."""

    generated: list[float] = field(default_factory=list)
    below: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def all_below(self) -> list[float]:
        return [reward for rewards in self.below.values() for reward in rewards]


@dataclass(frozen=True)
class ABMCTS(StepSearch):
    """Adaptive branching MCTS with node aggregation (the variant A). A node has an arm GEN, which
    makes one child more, and an arm CONT, which goes on to a child. Both have a posterior of their
    reward, and so has each child; from the root down the largest draw wins. GEN learns from the
    children that it made, CONT and the child on the way from all that is made below.

    Args:
        expansions: children that are made in all.
        batch: of these, made at once; with many, draws know less and the tree grows wide (the
            authors advise 5 at the most).
        prior: `GaussianPrior` or `BetaPrior` of every arm.
        action: how a child is made: a step, or a whole solution with a lead that asks for a better
            one.
        simulate: value a child by a sample of the rest of its solution, which is a candidate, too.
        kv_blocks: see `KVRoom`.
        scorer, step, max_steps, params, extract, weigh: see `StepSearch`.
    """

    card: ClassVar = Card(
        "ab-mcts", "structured search", "Inoue et al., 2025", ("prefill", "fork", "extend", "prune")
    )

    expansions: int = 64
    batch: int = 4
    prior: Prior = field(default_factory=GaussianPrior)
    action: Action = STEP
    simulate: bool = True
    kv_blocks: int | None = None
    weigh: Weighting = field(default=by_score, kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, expansions=self.expansions, batch=self.batch)
        KVRoom(self.kv_blocks, self.growth)
        super().__post_init__()

    def explorer(self, question: Branch) -> Explorer:
        return Explorer(question, self.growth, self.scorer, self.kv_blocks)

    def search(self, explorer: Explorer) -> Steps:
        rng = np.random.default_rng((yield Seed(explorer.root.branch)))
        seen: dict[int, _Rewards] = defaultdict(_Rewards)
        finished: list[SearchNode] = []
        left = self.expansions
        while left and not explorer.cut:
            nodes = [self._select(explorer, seen, rng) for _ in range(min(self.batch, left))]
            left -= len(nodes)
            families = yield from explorer.expand([Job(node, 1, self.action) for node in nodes])
            kids = [kid for family in families for kid in family]
            finished += [kid for kid in kids if kid.ended]
            values = [kid.value for kid in kids]
            if self.simulate:
                values, samples = yield from explorer.simulate(kids)
                finished += samples
            for kid, value in zip(kids, values, strict=True):
                kid.back_up(value)
                self._learn(kid, value, seen)
        nodes = list(explorer.root.walk())[1:]
        for node in nodes:
            node.branch.score = node.mean
        leaves = [node for node in nodes if not node.ended and not node.children]
        return (yield from explorer.conclude(finished, leaves))

    def _select(
        self, explorer: Explorer, seen: dict[int, _Rewards], rng: np.random.Generator
    ) -> SearchNode:
        """The node that gets the next child."""
        node = explorer.root
        while True:
            open_kids = [kid for kid in node.children if explorer.can_grow(kid)]
            if not open_kids:
                return node
            rewards = seen[id(node)]
            generate = self.prior.draw(rewards.generated, rng)
            if generate >= self.prior.draw(rewards.all_below, rng):
                return node
            draws = [self.prior.draw(rewards.below[id(kid)], rng) for kid in open_kids]
            node = open_kids[int(np.argmax(draws))]

    def _learn(self, kid: SearchNode, value: float, seen: dict[int, _Rewards]) -> None:
        """Tells the arms on the way what a new child is worth."""
        assert kid.parent is not None
        seen[id(kid.parent)].generated.append(value)
        for node in kid.parent.path():
            if node.parent is not None:
                seen[id(node.parent)].below[id(node)].append(value)
