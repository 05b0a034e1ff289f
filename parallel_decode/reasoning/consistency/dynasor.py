"""Dynasor: a trace ends once it keeps giving the same answer when asked (Fu et al., 2024)."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Prune, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.consistency.stopping import settled
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.probe import Probe
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Pieces

WORD = re.compile(r"\w+")
HEDGES = ("wait", "hold", "but", "okay", "no", "hmm")


@dataclass(frozen=True)
class Dynasor(Method):
    """D copies the question; P probes each trace every `chunk` tokens for the answer that it would
    give now, and ends it once `agree` probes in a row are certain and the same; A lets the answers
    vote.

    A probe is a fork, and its tokens count. The last one of a trace takes its place: nothing is
    computed again. So it is with a trace that reaches max_tokens. An answer that is stable and
    wrong ends a trace as well.

    Args:
        n: traces.
        chunk: tokens between two probes.
        agree: probes in a row that must give the same answer.
        probe: what the fork is told, such as the words before an answer.
        probe_params: how it answers.
        hedges: words, in small letters, that make an answer to a probe uncertain.
        params: how traces are drawn.
        extract: text to its answer, for probes (of their own text) and traces.
    """

    card: ClassVar = Card(
        "dynasor",
        "self-consistency",
        "Fu et al., 2024",
        ("prefill", "fork", "extend", "prune"),
    )

    n: int = 16
    chunk: int = 64
    agree: int = 3
    probe: str = "\nFinal answer: "
    probe_params: SamplingParams = field(
        default_factory=lambda: SamplingParams(
            temperature=0.6, top_p=0.95, max_tokens=20, stop=("\n",)
        )
    )
    hedges: Collection[str] = HEDGES
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, agree=self.agree)
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        pieces, probe = Pieces(self.params, self.chunk), Probe(self.probe, self.probe_params)
        return Pipeline(
            Copies(self.n), lambda b: self._sample(b, pieces, probe), Select(self.extract)
        )

    def _sample(self, branches: Sequence[Branch], pieces: Pieces, probe: Probe) -> Steps:
        said: dict[int, list[str | None]] = {id(branch): [] for branch in branches}
        takes_place: dict[int, Branch] = {}
        live = list(branches)
        while live:
            running = yield from pieces.advance(live)
            goes_on = {id(branch) for branch in running}
            open_ends = [branch for branch in live if branch.finish_reason == "length"]
            probes = yield from probe(open_ends)
            answers = self._certain_answers(probes)
            for branch, kid, answer in zip(open_ends, probes, answers, strict=True):
                said[id(branch)].append(answer)
                cut = id(branch) not in goes_on
                is_over = cut or settled(said[id(branch)], self.agree)
                if kid is not None and answer is not None and is_over:
                    takes_place[id(branch)] = kid
            yield Prune([b for b in open_ends if id(b) in takes_place])
            kept = {id(kid) for kid in takes_place.values()}
            yield Prune([kid for kid in probes if kid is not None and id(kid) not in kept])
            live = [branch for branch in running if id(branch) not in takes_place]
        return [takes_place.get(id(branch), branch) for branch in branches]

    def _certain_answers(self, probes: Sequence[Branch | None]) -> list[str | None]:
        texts = ["" if kid is None else kid.own_text for kid in probes]
        answers = answers_of(self.extract, texts)
        return [
            None if kid is None or self._hedges(text) else answer
            for kid, text, answer in zip(probes, texts, answers, strict=True)
        ]

    def _hedges(self, text: str) -> bool:
        said = Counter(WORD.findall(text.lower())) - Counter(WORD.findall(self.probe.lower()))
        return not said.keys().isdisjoint(self.hedges)
