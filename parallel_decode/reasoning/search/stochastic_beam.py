"""Stochastic beam search: whole sequences, sampled without replacement."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine import Branch, Extend, Fork, Prune, SamplingParams, Score, Seed, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.search.growth import CUT_SHORT
from parallel_decode.reasoning.search.gumbel import conditioned, gumbels
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import root


@dataclass
class _Beam:
    """A prefix with its log-probability and its perturbed one, the largest of all that begin so."""

    branch: Branch
    logprob: float = 0.0
    gumbel: float = 0.0
    ended: bool = False


@dataclass(frozen=True)
class StochasticBeam(Method):
    """Gumbel-top-k: `width` sequences, no two alike, drawn as by sampling without replacement from
    the distribution over whole sequences. A path's `score` is its perturbed log-probability; the
    paths come in the order of the draw.

    Args:
        width: sequences.
        max_tokens: length at which what is live counts as ended.
        temperature: of the distribution over tokens.
        allowed_tokens, stop_tokens, ignore_eos: as in `SamplingParams`.
        extract: text of a sequence to its answer; the answers have one vote each.
    """

    card: ClassVar = Card(
        "stochastic-beam",
        "structured search",
        "Kool, van Hoof and Welling, 2019",
        ("prefill", "fork", "score", "extend", "prune"),
    )

    width: int = 8
    max_tokens: int = 256
    temperature: float = 1.0
    allowed_tokens: frozenset[int] | None = None
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, width=self.width, max_tokens=self.max_tokens)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._search, Select(self.extract))

    def _search(self, branches: Sequence[Branch]) -> Steps:
        [question] = branches
        rng = np.random.default_rng((yield Seed(question)))
        # The root's own variable does not matter to the order of the sequences.
        beams = [_Beam(question)]
        for _ in range(self.max_tokens):
            live = [beam for beam in beams if not beam.ended]
            chosen, cut = yield from self._step(live, [b for b in beams if b.ended], rng)
            yield Prune([beam.branch for beam in live])
            kept = {id(beam) for beam in chosen}
            yield Prune([b.branch for b in beams if b.ended and id(b) not in kept])
            beams = chosen
            if cut or all(beam.ended for beam in beams):
                break
        for beam in beams:
            beam.branch.score = beam.gumbel
        return [beam.branch for beam in beams]

    def _step(
        self, live: Sequence[_Beam], ended: Sequence[_Beam], rng: np.random.Generator
    ) -> Steps:
        """-> the best beams one token later, and whether the search was cut short."""
        # A fork computes the beam's last token; it is the beam's first child if there is one.
        forks = yield [Fork(beam.branch) for beam in live]
        firsts: list[Branch] = [first for [first] in forks]
        rows = yield Score(firsts, distribution=True)
        entries: list[tuple[float, float, int, int]] = []  # gumbel, logprob, beam, token
        for number, (beam, row) in enumerate(zip(live, rows, strict=True)):
            if row.isnan().any():
                raise ValueError("the model's logits hold a NaN")
            logprobs = self._token_logprobs(row.double().numpy())
            perturbed = conditioned(gumbels(beam.logprob + logprobs, rng), beam.gumbel)
            for token in np.argsort(-perturbed, kind="stable")[: self.width].tolist():
                if perturbed[token] > -math.inf:
                    total = beam.logprob + float(logprobs[token])
                    entries.append((float(perturbed[token]), total, number, token))
        bar = sorted([*(e[0] for e in entries), *(b.gumbel for b in ended)])[-self.width :][0]
        entries = [entry for entry in entries if entry[0] >= bar]
        branches = yield from self._children(live, firsts, [entry[2] for entry in entries])
        # Only one token is allowed: it is recorded, counted and ends the branch like a drawn one.
        params = [replace(self._one, allowed_tokens=frozenset((e[3],))) for e in entries]
        yield Extend(branches, params)
        grown: dict[object, _Beam] = {}
        for branch, (gumbel, total, number, _) in zip(branches, entries, strict=True):
            if branch.own_tokens:
                ends = branch.finish_reason in ("eos", "stop")
                grown[id(branch)] = _Beam(branch, total, gumbel, ends)
            elif number in grown:
                yield Prune([branch])
            else:  # the context is full, or the search was cut short: the beam itself stays
                grown[number] = replace(live[number], branch=branch, ended=True)
        cut = any(branch.finish_reason in CUT_SHORT for branch in branches)
        kept = [beam for beam in ended if beam.gumbel >= bar]
        return sorted([*kept, *grown.values()], key=lambda beam: -beam.gumbel), cut

    def _children(
        self, live: Sequence[_Beam], firsts: Sequence[Branch], numbers: Sequence[int]
    ) -> Steps:
        """One child of beam i for each i in `numbers` -> branches in that order."""
        times = Counter(numbers)
        yield Prune([first for i, first in enumerate(firsts) if not times[i]])
        more = [i for i, n in times.items() if n > 1]
        forks = yield [Fork(live[i].branch, times[i] - 1) for i in more]
        families = {i: iter([firsts[i]]) for i in times}
        for i, family in zip(more, forks, strict=True):
            families[i] = iter([firsts[i], *family])
        return [next(families[i]) for i in numbers]

    def _token_logprobs(self, logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
        """With temperature and allowed tokens."""
        scaled = logprobs / self.temperature
        if self.allowed_tokens is not None:
            banned = np.ones(len(scaled), bool)
            banned[sorted(self.allowed_tokens)] = False
            scaled[banned] = -np.inf
        highest = scaled.max()
        return np.asarray(scaled - highest - np.log(np.exp(scaled - highest).sum()))

    @property
    def _one(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=1, stop_tokens=self.stop_tokens, ignore_eos=self.ignore_eos
        )
