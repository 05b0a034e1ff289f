"""Learning from peers: paths tell each other on the way what they have found."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, SamplingParams, Seed, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.interaction.routing import Route, check_route, dispersed
from parallel_decode.reasoning.interaction.turn import Turn, going_on, tell
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class LeaP(Method):
    """D copies the question, P takes a turn of each path; between turns those that have not ended
    write a summary each and read those of some peers; A lets the answers vote.

    It asks for a model that can sum up and read what others say; a small one must have been trained
    on the prompts. What is wrong spreads as what is right does.

    Args:
        n: paths.
        turns: of a path at the most; `params.max_tokens` is that of one.
        peers: summaries that a path reads between two turns; 0 to write them for nobody.
        route: whose; "dispersed" in the paper.
        strangers: summaries to be read instead of the peers', such as those of another question: a
            control.
        ask: what a path is told to make it write; a template without places.
        summary: how it writes.
        quote: a peer's summary with {text}, and {number} if it is wanted.
        comment: what a path is told then, with {summaries}.
        params: how paths are drawn; in the paper at temperature 0.6 with top_p 0.95, min_p 0.05.
        extract: text of a path to its answer; what peers say stands in it.
    """

    card: ClassVar = Card(
        "leap", "interaction", "Luo et al., 2025", ("prefill", "fork", "extend", "broadcast")
    )

    n: int = 4
    turns: int = 5
    peers: int = 2
    route: Route = dispersed
    strangers: Sequence[str] = ()
    ask: Template = field(default_factory=partial(Template.named, "leap_ask"))
    summary: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_tokens=256, stop="\n\n")
    )
    quote: Template = field(default_factory=partial(Template.named, "leap_summary"))
    comment: Template = field(default_factory=partial(Template.named, "leap_comment"))
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=2048))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, turns=self.turns)
        if self.peers < 0:
            raise ValueError(f"peers must not be negative, got {self.peers}")
        self.ask.require()
        self.quote.require("text", *({"number"} & set(self.quote.places)))
        self.comment.require("summaries")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(
            Copies(self.n),
            Turn(self.params),
            Select(self.extract),
            exchange=self._exchange,
            rounds=self.turns - 1,
        )

    def _exchange(self, branches: Sequence[Branch]) -> Steps:
        running = going_on(branches)
        paths = yield from tell(running, [self.ask.fill()] * len(running))
        if not paths:
            return list(branches)
        lengths = [len(path.text) for path in paths]
        yield Extend(paths, self.summary)
        said = [path.text[n:].strip() for path, n in zip(paths, lengths, strict=True)]
        heard = yield from self.heard(paths, said)
        # One that ended in its summary is not told anything.
        listening = [i for i, path in enumerate(paths) if path.status == "live"]
        comments = [self.comment.fill(summaries=self._quoted(heard[i])) for i in listening]
        yield from tell([paths[i] for i in listening], comments)
        return list(branches)

    def heard(self, paths: Sequence[Branch], said: Sequence[str]) -> Steps:
        """The summaries that each path reads."""
        if self.strangers:
            count, number = min(self.peers, len(self.strangers)), len(self.strangers)
            return [
                [self.strangers[(i + j) % number] for j in range(count)] for i in range(len(paths))
            ]
        seed = yield Seed(paths[0])
        # Another one for each exchange.
        rng = random.Random(f"{seed}/{paths[0].num_tokens}")
        route = self.route(said, min(self.peers, len(paths) - 1), rng)
        check_route(route, len(paths))
        return [[said[peer] for peer in peers] for peers in route]

    def _quoted(self, texts: Sequence[str]) -> str:
        wanted = self.quote.places
        return "".join(
            self.quote.fill(**{place: shown[place] for place in wanted})
            for shown in ({"number": str(n), "text": text} for n, text in enumerate(texts, 1))
        )
