"""Debate of two sides before a judge, who ends it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.author import Author
from parallel_decode.reasoning.discussion import Discussion
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.stages import root


@dataclass(frozen=True)
class MultiAgentDebate(Method):
    """P has an affirmative and a negative side argue in turn, each behind all that was said; after
    each round a judge names the right answer, which ends the debate, or lets it go on, and at the
    end has to decide; A is the judge's answer (Encouraging Divergent Thinking in Large Language
    Models through Multi-Agent Debate).

    A side that fails is silent in that round. Where the judge never decides, the last answer of the
    affirmative side stands, and a warning says so.

    Args:
        affirmative, negative, judge: who speaks.
        rounds: at the most.
        affirms, denies, judges, decides: what each is shown, with the arguments so far as {texts};
            the judge decides after the last round.
        extract: text to its answer; None of a judge's text lets the debate go on.
    """

    card: ClassVar = Card(
        "multi-agent-debate",
        "agents",
        "Multi-Agent Debate (MAD)",
        ("prefill", "fork", "extend", "prune", "delegate"),
    )

    affirmative: Author = field(default_factory=Author)
    negative: Author = field(default_factory=Author)
    judge: Author = field(
        default_factory=lambda: Author(SamplingParams(temperature=0, max_tokens=64))
    )
    rounds: int = 3
    affirms: Quotation = field(default_factory=partial(Quotation.named, "mad_affirmative"))
    denies: Quotation = field(default_factory=partial(Quotation.named, "mad_negative"))
    judges: Quotation = field(default_factory=partial(Quotation.named, "mad_judge"))
    decides: Quotation = field(default_factory=partial(Quotation.named, "mad_final"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds)
        for shown in (self.affirms, self.denies, self.judges, self.decides):
            shown.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._argue, self._conclude)

    def _argue(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        said: list[str] = []
        for number in range(1, self.rounds + 1):
            for side, shown in ((self.affirmative, self.affirms), (self.negative, self.denies)):
                [reply] = yield from talk.ask([side], [shown.of(said)])
                if reply.cut_off:
                    return talk
                if reply.error is None:
                    said.append(reply.text)
            judged = self.decides if number == self.rounds else self.judges
            [verdict] = yield from talk.ask([self.judge], [judged.of(said)])
            if verdict.cut_off or talk.answers(self.extract, [verdict]) != [None]:
                return talk
        return talk

    def _conclude(self, question: Question, talk: Any) -> Steps:
        yield from ()
        # Three speak in a round: the two sides, and the judge.
        by_turn = [reply for [reply] in talk.rounds]
        verdicts, affirmed = by_turn[2::3], by_turn[::3]
        if verdicts and talk.answers(self.extract, verdicts[-1:]) != [None]:
            return talk.conclude(self.extract, verdicts[-1:])
        talk.warnings.append("the judge did not decide: the last answer of the affirmative side")
        return talk.conclude(self.extract, affirmed[-1:])
