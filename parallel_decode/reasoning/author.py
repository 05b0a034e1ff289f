"""`Author`: a model that writes behind a question what others are then shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parallel_decode.engine import (
    Branch,
    Delegate,
    Engine,
    Extend,
    Fork,
    Prefill,
    Prune,
    SamplingParams,
    Seed,
    Steps,
)
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class Reply:
    """What an author wrote.

    Attributes:
        text: what it wrote itself, without what it was shown; "" where it failed.
        branch: that wrote it; None where there was none.
        error: why there is no text.
    """

    text: str
    branch: Branch | None = None
    error: str | None = None

    @property
    def cut_off(self) -> bool:
        """Whether the run was stopped while it was written: nothing comes after it."""
        return self.branch is not None and self.branch.finish_reason in ("aborted", "budget")


class UnreadableError(ValueError):
    """A text has characters for which a vocabulary has no tokens."""


@dataclass(frozen=True)
class Author:
    """A model and how it writes.

    Models of one process exchange text: what one wrote is tokens of its own vocabulary to the
    other. An author of another engine runs beside the engine that solves the question, batched with
    all that runs there; its tokens count as `Usage.delegated_tokens`.

    Args:
        params: how it draws; `max_tokens` bounds what it writes.
        engine: with its model; None for the engine that solves the question.
        prompt: how another engine's model is asked, with {question}, the text of the question: a
            place for its own chat format.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    engine: Engine | None = None
    prompt: Template = field(default_factory=lambda: Template("{question}"))

    def __post_init__(self) -> None:
        self.prompt.require("question")

    @property
    def name(self) -> str:
        """For messages."""
        if self.engine is None:
            return "the engine's own model"
        return f"{self.engine.name!r} (a vocabulary of {self.engine.tokenizer.vocab_size})"

    def write(self, question: Branch, shown: Sequence[str]) -> Steps:
        """One text behind the question and each of the texts `shown` -> list[Reply].

        A text without room for it in the context, or blocks, is a reply with an error.

        Raises:
            UnreadableError: the vocabulary has no tokens for what is shown.
        """
        if not shown:
            return []
        if self.engine is None:
            return (yield from self._behind(question, shown, [self.params] * len(shown)))
        # A fork without tokens, for random numbers of its own: equal texts are answered apart.
        marks = yield Fork(question, len(shown))
        seeds = yield [Seed(mark) for mark in marks]
        yield Prune(marks)
        params = [replace(self.params, seed=seed) for seed in seeds]
        asked = self.prompt.fill(question=question.text_before_output)
        try:
            return (yield Delegate(self.engine, self._elsewhere(asked, shown, params)))
        except RuntimeError as error:  # the other engine has no blocks for it
            return [Reply("", error=str(error))] * len(shown)

    def _elsewhere(
        self, asked: str, shown: Sequence[str], params: Sequence[SamplingParams]
    ) -> Steps:
        """On the other engine."""
        assert self.engine is not None
        tokenizer = self.engine.tokenizer
        tokens = tokenizer.encode(asked)
        # A template may name special tokens.
        _check_read(asked, tokenizer.decode(tokens, skip_special_tokens=False))
        try:
            root = yield Prefill(tokens)
        except ValueError as error:  # too long, or empty
            return [Reply("", error=str(error))] * len(shown)
        return (yield from self._behind(root, shown, params))

    def _behind(
        self, question: Branch, shown: Sequence[str], params: Sequence[SamplingParams]
    ) -> Steps:
        """Equal texts are stored once; each reply is a fork of its own."""
        places: dict[str, list[int]] = {}
        for place, text in enumerate(shown):
            places.setdefault(text, []).append(place)
        texts = [text for text in places if text]
        readers = (yield Fork(question, len(texts))) if texts else []
        reads = [Extend([reader], tokens=text) for reader, text in zip(readers, texts, strict=True)]
        try:
            yield reads
        except ValueError:
            if all(read.error is None for read in reads):
                raise
        replies = [Reply("") for _ in shown]
        # Behind the question itself they draw what samples of the question draw.
        ready = [(question, places[""])] if "" in places else []
        for reader, text, read in zip(readers, texts, reads, strict=True):
            if read.error is not None or reader.status == "failed":
                for place in places[text]:
                    replies[place] = Reply("", error=reader.error or str(read.error))
                continue
            _check_read(text, reader.own_text_with_specials)
            ready.append((reader, places[text]))
        forks = yield [Fork(reader, len(at)) for reader, at in ready]
        order = [place for _, at in ready for place in at]
        writers = [writer for family in forks for writer in family]
        if writers:
            yield Extend(writers, [params[place] for place in order])
        yield Prune(readers)
        for place, writer in zip(order, writers, strict=True):
            failed = writer.status == "failed"
            text = "" if failed else writer.own_text.strip()
            replies[place] = Reply(text, writer, writer.error if failed else None)
        return replies


def _check_read(text: str, read: str) -> None:
    lost = sorted({c for c in text if not c.isspace()} - set(read))
    if lost:
        raise UnreadableError(f"has no tokens for {''.join(lost)!r}")
