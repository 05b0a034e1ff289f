"""`choose_layers`: the layers of a model that draft best for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C
from parallel_decode.engine import Engine, SamplingParams
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.engine.verified import Verified
from parallel_decode.kernels.fused_layers import FusedLayers
from parallel_decode.speculation.self_draft import fused_layers
from parallel_decode.speculation.step_costs import StepCosts

MAX_SUBSETS = 64
"""All subsets are tried of a model that has no more of them."""
DEPTH = 8
"""Tokens of a chain that are compared with what the model says."""
NUM_PLACES = 48
"""From which chains begin, over all texts."""
REPEATS = 5


@dataclass(frozen=True)
class LayerChoice:
    """What is expected of drafting with some of the layers.

    Attributes:
        kept: their numbers.
        depth: of the chain that pays most.
        tokens_per_step: with it, one branch.
        predicted_speedup: of it, drafting included.
    """

    kept: tuple[int, ...]
    depth: int
    tokens_per_step: float
    predicted_speedup: float


def choose_layers(
    engine: Engine,
    prompts: Iterable[str | Sequence[int]],
    costs: StepCosts,
    params: SamplingParams | None = None,
) -> LayerChoice:
    """The layers with the best predicted speed-up. The model goes on from the prompts, and each
    choice of layers drafts at places of what it said, where one sees how long it is right:

        max over d of (1 + E[right tokens of d]) / (seconds to draft d + step(1 + d)) * step(1).

    Few layers are tried in all combinations, many in this order: without each single one; then
    without the least missed one, the two least missed, and so on (SWIFT searches at random instead,
    Xia et al. 2024). All layers are a choice as well: they draft without the host's part of a step.

    Args:
        engine: on the CPU backend; it is left as it was.
        prompts: of which the model's own continuations are taken.
        costs: of the engine's steps.
        params: of these; at temperature 1 and 64 tokens each if not given.

    Raises:
        ValueError: there is no prompt, or the model says too little after them.
    """
    fused_layers(engine)
    params = params or SamplingParams(max_tokens=64)
    texts = _Texts(engine, prompts, params)
    try:
        return _best(engine, texts, costs)
    finally:
        texts.release()


def _best(engine: Engine, texts: _Texts, costs: StepCosts) -> LayerChoice:
    num_layers = len(engine.model.layers)
    everything = tuple(range(num_layers))
    if 2**num_layers <= MAX_SUBSETS:
        subsets = [
            kept
            for size in range(1, num_layers + 1)
            for kept in itertools.combinations(everything, size)
        ]
        return max((_judge(engine, kept, texts, costs) for kept in subsets), key=_speedup)
    alone = [
        _judge(engine, everything[:layer] + everything[layer + 1 :], texts, costs)
        for layer in everything
    ]
    order = sorted(everything, key=lambda layer: -alone[layer].tokens_per_step)
    choices = [_judge(engine, everything, texts, costs), *alone]
    for count in range(2, num_layers):
        kept = tuple(sorted(order[count:]))
        choices.append(_judge(engine, kept, texts, costs))
    return max(choices, key=_speedup)


def _speedup(choice: LayerChoice) -> float:
    return choice.predicted_speedup


def _judge(engine: Engine, kept: tuple[int, ...], texts: _Texts, costs: StepCosts) -> LayerChoice:
    layers = fused_layers(engine, kept)
    depths = 1 + np.arange(DEPTH)
    tokens = 1 + np.cumsum(texts.right(engine, layers))
    first, last = (texts.seconds(engine, layers, depth) for depth in (1, DEPTH))
    drafting = np.interp(depths, (1, DEPTH), (first, max(first, last)))
    speedups = tokens / (drafting + costs.seconds[1 + depths]) * costs.seconds[1]
    best = int(np.argmax(speedups))
    return LayerChoice(kept, best + 1, float(tokens[best]), float(speedups[best]))


@dataclass(frozen=True)
class _Place:
    """Behind token number `at` of a text, which is still to be computed."""

    request: DraftRequest
    at: int

    def open(self, depth: int) -> tuple[_C.BlockTable, _C.DraftBranch]:
        branch, params, key = self.request
        table = branch.table.fork()
        table.truncate(self.at)
        filters = (params.temperature, params.top_k, params.top_p, params.min_p)
        pending = branch.tokens[self.at : self.at + 1]
        return table, _C.DraftBranch(table, pending, *filters, key, depth, self.at)


class _Texts:
    """What the model says after the prompts, as stored branches."""

    def __init__(
        self, engine: Engine, prompts: Iterable[str | Sequence[int]], params: SamplingParams
    ) -> None:
        listener = _Listener()
        before, engine.speculator = engine.speculator, listener
        self._branches: list[Branch] = []
        try:
            for prompt in prompts:
                self._branches.append(engine.prefill(prompt))
            if not self._branches:
                raise ValueError("layers are chosen by what the model says: give it a prompt")
            engine.extend(self._branches, params)
        except BaseException:
            self.release()
            raise
        finally:
            engine.speculator = before
        places = [
            _Place(listener.requests[branch], at)
            for branch in self._branches
            if branch in listener.requests
            for at in range(branch.prompt_length, branch.num_stored - DEPTH)
        ]
        if not places:
            self.release()
            raise ValueError(
                f"layers are chosen by what the model says: it said no {DEPTH + 2} tokens"
            )
        numbers = np.linspace(0, len(places) - 1, min(NUM_PLACES, len(places))).astype(int)
        self._places = [places[number] for number in numbers]

    def release(self) -> None:
        for branch in self._branches:
            branch.release()

    def right(self, engine: Engine, layers: FusedLayers) -> NDArray[np.float64]:
        """[DEPTH]: how often the first 1, 2, ... tokens of a chain are all right."""
        right = np.zeros(DEPTH)
        for place, tokens in zip(self._places, self._drafts(engine, layers, self._places, DEPTH)):
            said = place.request.branch.tokens[place.at + 1 : place.at + 1 + DEPTH]
            padded = np.full(DEPTH, -1)
            padded[: len(tokens)] = tokens
            right += np.cumprod(padded == said)
        return right / len(self._places)

    def seconds(self, engine: Engine, layers: FusedLayers, depth: int) -> float:
        """Of one branch's chain, the median of some places."""
        taken = []
        for place in self._places[:REPEATS]:
            start = time.perf_counter()
            self._drafts(engine, layers, [place], depth)
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))

    def _drafts(
        self, engine: Engine, layers: FusedLayers, places: Sequence[_Place], depth: int
    ) -> list[NDArray[np.int64]]:
        opened = [place.open(depth) for place in places]
        try:
            combs = layers.draft_combs(
                engine.cache.storage, [branch for _, branch in opened], min_prob=0.0
            )
        finally:
            for table, _ in opened:
                table.truncate(0)
        return [comb.tokens for comb in combs]


class _Listener:
    """Drafts nothing, and remembers with which random numbers branches draw."""

    def __init__(self) -> None:
        self.requests: dict[Branch, DraftRequest] = {}

    row_observer = None

    def wants_to_draft(self, num_rows: int) -> bool:
        return True

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        self.requests.update((request.branch, request) for request in requests)
        return [NO_DRAFT] * len(requests)

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """Nothing is learned."""

    def observe(self, branch: Branch) -> None:
        """Nothing is remembered."""

    def forget(self, branch: Branch) -> None:
        """Nothing is remembered."""
