"""Universal self-consistency: the model reads all answers and names the most consistent one
(Chen et al., 2023)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, Fork, Join, SamplingParams, Steps
from parallel_decode.reasoning.extract import whole
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples


@dataclass(frozen=True)
class ReadingPrompt:
    """How candidates are shown to the model, after the question.

    Args:
        head: before the first candidate.
        candidate: one of them: {number} counts from 1, {text} is what it says.
        tail: after the last; the reply that follows begins with a number.
    """

    head: str = "\nI have generated the following responses to the question:\n"
    candidate: str = "\nResponse {number}: {text}\n"
    tail: str = (
        "\nEvaluate these responses. Select the most consistent one, based on majority consensus."
        "\nThe most consistent response is Response"
    )

    def __post_init__(self) -> None:
        for name in ("{number}", "{text}"):
            if name not in self.candidate:
                raise ValueError(f"candidate must hold {name}, got {self.candidate!r}")
        if not self.tail:
            raise ValueError("tail must not be empty")

    def shown(self, number: int, text: str) -> str:
        # Not by format(): a text may hold braces.
        before, after = self.candidate.split("{text}", 1)
        shown = "".join(
            (before.replace("{number}", str(number)), text, after.replace("{number}", str(number)))
        )
        return self.head + shown if number == 1 else shown


@dataclass(frozen=True)
class UniversalSelfConsistency(Method):
    """D copies the question, P samples each copy to its end, A joins the candidates as text behind
    the question and has the model name one.

    No answer needs to be the same as another. It asks for a model that follows instructions, and
    for a context that holds all candidates. Where the reply names none of them, or they do not fit,
    the plain majority decides, and a warning says so.

    Args:
        n: samples.
        prompt: how the candidates are shown.
        reply: how the model answers.
        params: how samples are drawn.
        extract: text of the chosen branch to its answer; a branch without one is no candidate.
    """

    card: ClassVar = Card(
        "universal-self-consistency",
        "self-consistency",
        "Chen et al., 2023",
        ("prefill", "fork", "extend", "join"),
    )

    n: int = 8
    prompt: ReadingPrompt = field(default_factory=ReadingPrompt)
    reply: SamplingParams = field(
        default_factory=lambda: SamplingParams(temperature=0, max_tokens=8)
    )
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = whole

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), Samples(self.params), self._choose)

    def _choose(self, question: Question, branches: Sequence[Branch]) -> Steps:
        sound = [branch for branch in branches if branch.status != "failed"]
        answers = answers_of(self.extract, [branch.text for branch in sound])
        candidates = [b for b, answer in zip(sound, answers, strict=True) if answer is not None]
        chosen, reason = None, "there is none"
        if candidates:
            chosen, reason = yield from self._named(candidates)
        if chosen is None:
            solution = yield from Select(self.extract)(question, branches)
            solution.warnings.append(f"no candidate was chosen, the majority decides: {reason}")
            return solution
        select = Select(self.extract, lambda given: [float(b is chosen) for b in given])
        return (yield from select(question, branches))

    def _named(self, candidates: Sequence[Branch]) -> Steps:
        """The candidate that the model names, or None and why."""
        numbers = {id(branch): number for number, branch in enumerate(candidates, 1)}
        question = candidates[0].parent
        assert question is not None
        try:
            reader = yield Join(
                question,
                candidates,
                "answer",
                extract=lambda b: self.prompt.shown(numbers[id(b)], b.text.strip()),
            )
            yield Extend([reader], tokens=self.prompt.tail)
            [reader] = yield Fork(reader)
            yield Extend([reader], self.reply)
        except ValueError as error:  # they do not fit
            return None, str(error)
        reply = reader.own_text
        found = re.search(r"\d+", reply)
        if found is None or not 1 <= int(found[0]) <= len(candidates):
            return None, f"the model replied {reply!r}"
        return candidates[int(found[0]) - 1], ""
