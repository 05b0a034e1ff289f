"""Self-evaluation guided beam search: steps the model finds likely, and right."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from parallel_decode.engine import Prune, Seed, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.scorer import Scorer
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.gumbel import gumbels
from parallel_decode.reasoning.search.kv_room import Job
from parallel_decode.reasoning.search.node import SearchNode
from parallel_decode.reasoning.search.self_evaluation import SelfEvaluation
from parallel_decode.reasoning.search.step_search import StepSearch


@dataclass(frozen=True)
class SelfEvalBeam(StepSearch):
    """A beam's value is log E = Σ_t λ·log P(step t) + (1-λ)·log C(step t), with C the scorer's word
    on the step. Of all children `width` are drawn without replacement, with probabilities in
    proportion to exp(log E / τ_t), where τ_t = temperature · decay^t; at τ = 0 the best are kept.

    Args:
        width: beams.
        expand: children of each.
        mix: λ, in [0, 1].
        temperature: τ at the first step.
        decay: in [0, 1].
        scorer: C, in (0, 1].
        step, max_steps, params, extract, weigh: see `StepSearch`.
    """

    card: ClassVar = Card(
        "self-eval-beam",
        "structured search",
        "Xie et al., 2023",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    width: int = 4
    expand: int = 4
    mix: float = 0.5
    temperature: float = 0.5
    decay: float = 0.5
    scorer: Scorer = field(default_factory=SelfEvaluation, kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, width=self.width, expand=self.expand)
        for name in ("mix", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        super().__post_init__()

    def search(self, explorer: Explorer) -> Steps:
        rng = np.random.default_rng((yield Seed(explorer.root.branch)))
        jobs = [Job(explorer.root, self.expand * self.width)]
        worth = {id(explorer.root): 0.0}  # log E
        ended: list[SearchNode] = []
        temperature = self.temperature
        while True:
            families = yield from explorer.expand(jobs)
            yield Prune([job.node.branch for job in jobs])
            grown = [node for family in families for node in family]
            for node in grown:
                assert node.parent is not None
                worth[id(node)] = worth[id(node.parent)] + self._gain(node)
                node.branch.score = worth[id(node)]
            kept = self._draw(grown, temperature, rng)
            temperature *= self.decay
            chosen = {id(node) for node in kept}
            yield Prune([node.branch for node in grown if id(node) not in chosen])
            ended += [node for node in kept if node.ended]
            live = [node for node in kept if explorer.can_grow(node)]
            if explorer.cut or not live or len(ended) >= self.width:
                unfinished = [node for node in kept if not node.ended]
                return (yield from explorer.conclude(ended, unfinished))
            jobs = [Job(node, self.expand) for node in live]

    def _gain(self, node: SearchNode) -> float:
        if not 0 < node.value <= 1:
            raise ValueError(f"the scorer must give a confidence in (0, 1], gave {node.value}")
        branch = node.branch
        records = branch.records[branch.fork_length - branch.prompt_length :]
        likely = math.fsum(record.logprob for record in records if record.sampled)
        return self.mix * likely + (1 - self.mix) * math.log(node.value)

    def _draw(
        self, nodes: list[SearchNode], temperature: float, rng: np.random.Generator
    ) -> list[SearchNode]:
        worth = np.array([node.value for node in nodes])
        if temperature > 1e-6:
            worth = gumbels(worth / temperature, rng)
        return [nodes[i] for i in np.argsort(-worth, kind="stable")[: self.width]]
