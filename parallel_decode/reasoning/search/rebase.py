"""REBASE: the breadth of the next step is shared out by reward."""

from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Prune, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.search.allocation import softmax_allocation
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.kv_room import Job
from parallel_decode.reasoning.search.node import SearchNode
from parallel_decode.reasoning.search.step_search import StepSearch
from parallel_decode.reasoning.weighting import Weighting, by_score


@dataclass(frozen=True)
class Rebase(StepSearch):
    """Reward-balanced search: a partial solution gets children in proportion to exp(reward / T);
    one that ends takes its share of the width with it. With equal rewards each gets one child, and
    the `width` paths are independent samples.

    Args:
        width: solutions that grow or have ended, together.
        temperature: T of `softmax_allocation`; the paper has 0.2 for rewards in [0, 1].
        scorer, step, max_steps, params, extract, weigh: see `StepSearch`; scores must not be
            negative where `weigh` is `by_score`.
    """

    card: ClassVar = Card(
        "rebase", "structured search", "Wu et al., 2024", ("prefill", "fork", "extend", "prune")
    )

    width: int = 16
    temperature: float = 0.2
    weigh: Weighting = field(default=by_score, kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, width=self.width)
        softmax_allocation([], 0, self.temperature)
        super().__post_init__()

    def search(self, explorer: Explorer) -> Steps:
        jobs = [Job(explorer.root, self.width)]
        ended: list[SearchNode] = []
        while True:
            families = yield from explorer.expand(jobs)
            yield Prune([job.node.branch for job in jobs])
            grown = [node for family in families for node in family]
            ended += [node for node in grown if node.ended]
            live = [node for node in grown if explorer.can_grow(node)]
            if explorer.cut or not live or len(ended) >= self.width:
                unfinished = [node for node in grown if not node.ended]
                return (yield from explorer.conclude(ended, unfinished))
            jobs = yield from self.allocate(live, self.width - len(ended))

    def allocate(self, live: list[SearchNode], budget: int) -> Steps:
        """-> the next step's jobs; what gets no child is dropped."""
        counts = softmax_allocation([node.value for node in live], budget, self.temperature)
        yield Prune([node.branch for node, n in zip(live, counts, strict=True) if not n])
        return [Job(node, n) for node, n in zip(live, counts, strict=True) if n]
