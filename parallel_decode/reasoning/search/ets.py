"""ETS: REBASE over a tree that is cut where its keys cost more than they are worth."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from parallel_decode.engine import Prune, Score, Steps
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.search.allocation import softmax_allocation
from parallel_decode.reasoning.search.leaf_choice import LeafChoice, cosine_clusters
from parallel_decode.reasoning.search.node import SearchNode, branches_of, token_cost
from parallel_decode.reasoning.search.rebase import Rebase


@dataclass(frozen=True)
class ETS(Rebase):
    """Efficient tree search: after each step the leaves to go on with are those that maximise
    `LeafChoice`, by their REBASE weights, the unique tokens that they hold in the KV cache, and the
    clusters of their last hidden states; these share the width as in REBASE.

    Args:
        width, temperature: see `Rebase`.
        budget_weight: λ_b, of the KV cost.
        diversity_weight: λ_d, of the clusters that are covered.
        cut: cosine distance below which leaves are one cluster.
        exact_below: with fewer leaves all sets are compared, else leaves are added greedily.
        scorer, step, max_steps, params, extract, weigh: see `StepSearch`.
    """

    card: ClassVar = Card(
        "ets",
        "structured search",
        "Hooper et al., 2025",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    budget_weight: float = 1.0
    diversity_weight: float = 1.0
    cut: float = 0.05
    exact_below: int = 9

    def __post_init__(self) -> None:
        for name in ("budget_weight", "diversity_weight", "cut", "exact_below"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.exact_below > 16:
            raise ValueError(f"exact_below must be at most 16, got {self.exact_below}")
        super().__post_init__()

    def allocate(self, live: list[SearchNode], budget: int) -> Steps:
        counts = softmax_allocation([node.value for node in live], budget, self.temperature)
        hidden = yield Score(branches_of(live), head=lambda rows: rows)
        clusters = cosine_clusters(torch.stack(list(hidden)).double().numpy(), self.cut)
        choice = LeafChoice(
            counts,
            clusters,
            token_cost(live),
            self.budget_weight,
            self.diversity_weight,
        )
        kept = choice.exact() if len(live) < self.exact_below else choice.greedy()
        chosen = {id(live[i]) for i in kept}
        yield Prune([node.branch for node in live if id(node) not in chosen])
        return (yield from super().allocate([live[i] for i in kept], budget))
