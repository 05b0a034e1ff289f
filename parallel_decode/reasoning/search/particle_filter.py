"""Particle filtering: partial solutions are resampled by their weights after each step."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from parallel_decode.engine import Prune, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.draws import draws
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.scorer import Scorer, mean_logprob
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.kv_room import Job
from parallel_decode.reasoning.search.node import SearchNode
from parallel_decode.reasoning.search.resampling import effective_sample_size, systematic
from parallel_decode.reasoning.search.step_search import StepSearch
from parallel_decode.reasoning.weighting import Weighting, softmax

TARGETS = ("product", "last")


@dataclass(frozen=True)
class ParticleFilter(StepSearch):
    """`n` particles grow step by step; a particle's weight is multiplied by the potential of its
    new step, exp(score / temperature). Where the weights are worth fewer than `threshold` · n
    particles, they are resampled (systematic) and start again from equal ones. With equal scores
    nothing is ever resampled: the particles are independent samples.

    Args:
        n: particles.
        temperature: of the potentials.
        target: "product" weighs a solution by the potentials of all its prefixes, where one that
            ended earlier repeats its last; "last" by that of the whole solution alone, which
            prefixes only anticipate.
        threshold: share of n, in [0, 1]; 1 resamples whenever the weights differ.
        scorer: log-potentials: of a verifier that gives a probability, its logarithm.
        step, max_steps, params, extract: see `StepSearch`.
        weigh: last log-weights of the particles to their votes.
    """

    card: ClassVar = Card(
        "particle-filter",
        "structured search",
        "Puri et al., 2025",
        ("prefill", "fork", "extend", "prune"),
    )

    n: int = 16
    temperature: float = 1.0
    target: Literal["product", "last"] = "product"
    threshold: float = 1.0
    scorer: Scorer = field(default=mean_logprob, kw_only=True)
    weigh: Weighting = field(default_factory=lambda: softmax(1.0), kw_only=True)

    def __post_init__(self) -> None:
        at_least(1, n=self.n)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")
        super().__post_init__()

    def search(self, explorer: Explorer) -> Steps:
        rng = yield from draws(explorer.root.branch)
        jobs = [Job(explorer.root, self.n)]
        log_weights = {id(explorer.root): 0.0}
        before = {id(explorer.root): 0.0}  # score of a particle's last step
        copies: dict[int, int] = {}  # of an ended particle that stands for several
        ended: list[SearchNode] = []
        while True:
            families = yield from explorer.expand(jobs)
            yield Prune([job.node.branch for job in jobs])
            grown = [node for family in families for node in family]
            if self.target == "product":
                for node in ended:
                    log_weights[id(node)] += node.value / self.temperature
            for node in grown:
                assert node.parent is not None
                gain = node.value - (before[id(node.parent)] if self.target == "last" else 0.0)
                before[id(node)] = node.value
                log_weights[id(node)] = log_weights[id(node.parent)] + gain / self.temperature
            ended += [node for node in grown if node.ended]
            live = [node for node in grown if explorer.can_grow(node)]
            if explorer.cut or not live:
                break
            particles = [*ended, *live]
            weights = [log_weights[id(node)] for node in particles]
            counts = self._resample(weights, [copies.get(id(n), 1) for n in particles], rng)
            if counts is None:
                jobs = [Job(node, 1) for node in live]
                continue
            copies = dict(zip(map(id, particles), counts, strict=True))
            yield Prune([node.branch for node in particles if not copies[id(node)]])
            ended = [node for node in ended if copies[id(node)]]
            jobs = [Job(node, copies[id(node)]) for node in live if copies[id(node)]]
            # Copies of a particle that has ended are one that weighs as much.
            log_weights |= {id(node): math.log(copies[id(node)]) for node in ended}
            log_weights |= {id(job.node): 0.0 for job in jobs}
            if not jobs:
                break
        unfinished = [node for node in grown if not node.ended and node.branch.status != "pruned"]
        for node in [*ended, *unfinished]:
            node.branch.score = log_weights[id(node)]
        return (yield from explorer.conclude(ended, unfinished))

    def _resample(
        self, log_weights: Sequence[float], copies: Sequence[int], rng: random.Random
    ) -> list[int] | None:
        """Copies of each particle, `n` in all; None where the weights are even enough."""
        highest = max(log_weights)
        weights = [math.exp(w - highest) for w in log_weights]
        each = [w / c for w, c in zip(weights, copies, strict=True) for _ in range(c)]
        if effective_sample_size(each) >= self.threshold * len(each) * (1 - 1e-9):
            return None
        return systematic(weights, self.n, rng.random())
