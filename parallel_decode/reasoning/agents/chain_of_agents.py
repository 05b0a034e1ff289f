"""Chain of agents: a long text in chunks, notes handed from worker to worker, and a manager."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from parallel_decode.engine import Prefill, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.author import Author
from parallel_decode.reasoning.discussion import Discussion
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.template import Template

Split = Callable[[str], tuple[Sequence[str], str]]
"""A question -> the chunks of its long text, and what is asked about it."""


@dataclass(frozen=True)
class LastParagraphAsks:
    """The text after the last blank line is what is asked; the rest goes in chunks of so many words
    (fewer in the last one)."""

    words: int = 256

    def __post_init__(self) -> None:
        at_least(1, words=self.words)

    def __call__(self, text: str) -> tuple[list[str], str]:
        source, _, asked = text.strip().rpartition("\n\n")
        words = source.split(" ")
        starts = range(0, len(words) if source else 0, self.words)
        return [" ".join(words[start : start + self.words]) for start in starts], asked


@dataclass(frozen=True)
class ChainOfAgents(Method):
    """D splits the question; P has one worker after the other read a chunk and the note of the one
    before, and write a note; A is the manager's answer from the last note (Chain of Agents: Large
    Language Models Collaborating on Long-Context Tasks).

    No model sees the whole text, which may be longer than its context. A note that never ends is
    cut at `worker.params.max_tokens`; a worker that fails hands on the note that it got.

    Args:
        split: text of the question to its chunks and what is asked.
        worker, manager: who writes.
        note: what a worker is shown, with {chunk} and {note}.
        answer: what the manager is shown, with {note}.
        extract: text of the manager to its answer.
    """

    card: ClassVar = Card(
        "chain-of-agents",
        "agents",
        "Chain of Agents",
        ("prefill", "fork", "extend", "prune", "delegate"),
    )

    split: Split = field(default_factory=LastParagraphAsks)
    worker: Author = field(default_factory=lambda: Author(SamplingParams(max_tokens=128)))
    manager: Author = field(default_factory=Author)
    note: Template = field(default_factory=partial(Template.named, "chain_worker"))
    answer: Template = field(default_factory=partial(Template.named, "chain_manager"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        self.note.require("chunk", "note")
        self.answer.require("note")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(self._divide, self._work, self._manage)

    def _divide(self, question: Question) -> Steps:
        if not isinstance(question, str):
            raise ValueError("chain of agents splits a text: give the question as text, not tokens")
        chunks, asked = self.split(question)
        branch = yield Prefill(asked)
        return branch, list(chunks)

    def _work(self, divided: Any) -> Steps:
        branch, chunks = divided
        talk, note = Discussion(branch), ""
        for chunk in chunks:
            [reply] = yield from talk.ask([self.worker], [self.note.fill(chunk=chunk, note=note)])
            if reply.cut_off:
                break
            note = note if reply.error else reply.text
        return talk, note

    def _manage(self, question: Question, worked: Any) -> Steps:
        talk, note = worked
        yield from talk.ask([self.manager], [self.answer.fill(note=note)])
        return talk.conclude(self.extract)
