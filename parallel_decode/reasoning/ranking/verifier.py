"""`Verifier`: a trained head on hidden states, as a scorer of branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel_decode.engine import Branch, Delegate, Engine, Extend, Fork, Prefill, Score, Steps
from parallel_decode.model import Classifier, open_checkpoint, open_heads
from parallel_decode.model.checkpoint import model_folder
from parallel_decode.reasoning.ranking.reduction import REDUCTIONS
from parallel_decode.reasoning.ranking.step_statistics import STATISTICS, step_statistics

KINDS = ("outcome", "process")


@dataclass(frozen=True)
class Verifier:
    """Scores solutions, or their steps, by a head on hidden states (Cobbe et al., 2021; Lightman et
    al., 2023).

    Without an engine of its own it reads the states of the model that writes: where these are at
    hand, a score costs no forward pass. With one, that model reads question and solution as text,
    beside the engine that writes, and the tokens count as `Usage.delegated_tokens`.

    Args:
        head: hidden states [n, hidden_size] to scores [n].
        step: string that ends a step; "" to look at the end of the text alone.
        reduce: the scores of the steps to one: "min", "prod", "last" or "mean".
        engine: with the verifier's own model; None for the states of the model that writes.
        statistics: the head reads [n, hidden_size + 10]: behind the state, what the model that
            writes thought of its tokens (`step_statistics.STATISTICS`). Not with an engine.

    Raises:
        ValueError: arguments that do not go together; or, when it scores, a head that gives a wrong
            number of scores.
    """

    head: Callable[[Tensor], Tensor]
    step: str = ""
    reduce: str = "min"
    engine: Engine | None = None
    statistics: bool = False

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {self.reduce!r}")
        if self.statistics and (self.engine is not None or not self.step):
            raise ValueError("statistics need a step, and are those of the model that writes")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        kind: str | None = None,
        *,
        label: int | str | None = None,
        step: str = "\n",
        reduce: str | None = None,
        allow_download: bool = False,
        **options: Any,
    ) -> Verifier:
        """Opens heads on the trunk ("reasoner-verifier", or a folder with heads.safetensors), or a
        model of its own: a folder or hub id whose config names `...ForSequenceClassification` or
        `...ForTokenClassification`.

        Args:
            kind: "outcome" or "process"; None for what it was trained as.
            label: number or name of the output that speaks for a solution; None for the output that
                is named as `kind`, or the last one.
            step: string that ends a step.
            reduce: see `Verifier`; None for what the files say, or "min".
            allow_download: whether a hub id may be fetched.
            options: keyword arguments of the verifier's `Engine`.

        Raises:
            ValueError: the files are damaged or hold no classifier, or an argument is bad.
        """
        if kind not in (None, *KINDS):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if (model_folder(source) / "heads.safetensors").is_file():
            if options:
                raise ValueError(f"heads on the trunk take no options of an engine: {options}")
            return cls._on_trunk(source, kind, label, step, reduce)
        checkpoint = open_checkpoint(source, allow_download=allow_download)
        classifier = checkpoint.classifier
        if classifier is None:
            raise ValueError(f"{source}: no classification head; what writes is no verifier")
        kind = kind or KINDS[classifier.of_tokens]
        return cls(
            _head(classifier, kind, label),
            step if kind == "process" else "",
            reduce or "min",
            Engine(checkpoint, **options),
        )

    @classmethod
    def _on_trunk(
        cls,
        source: str | Path,
        kind: str | None,
        label: int | str | None,
        step: str,
        reduce: str | None,
    ) -> Verifier:
        heads = open_heads(source)
        if heads.statistics not in ((), STATISTICS):
            raise ValueError(f"{source}: unknown statistics {heads.statistics}")
        kind = kind or KINDS[heads.classifier.of_tokens]
        statistics = bool(heads.statistics)
        if kind == "outcome":
            # The end of the text is the end of the last step.
            step, reduce = step if statistics else "", "last"
        return cls(
            _head(heads.classifier, kind, label),
            step,
            reduce or heads.reduce or "min",
            statistics=statistics,
        )

    @property
    def keep_hidden(self) -> str:
        """Where the model that writes had better keep its hidden states: see `Extend`."""
        return self.step if self.engine is None else ""

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        """One score a branch -> list[float]."""
        reduce = REDUCTIONS[self.reduce]
        return [reduce(scores) for scores in (yield from self.step_scores(branches))]

    def step_scores(self, branches: Sequence[Branch]) -> Steps:
        """Of each step of each branch, the unfinished last one as well -> list[list[float]]."""
        if not branches:
            return []
        if self.engine is None:
            return (yield from self._look(branches))
        texts = [(branch.text_before_output, branch.text) for branch in branches]
        return (yield Delegate(self.engine, self._read(texts)))

    def _read(self, texts: Sequence[tuple[str, str]]) -> Steps:
        """On the verifier's engine: each question once, each solution behind it."""
        counts: dict[str, int] = {}
        for question, _ in texts:
            counts[question] = counts.get(question, 0) + 1
        roots = yield [Prefill(question) for question in counts]
        families = yield [Fork(root, n) for root, n in zip(roots, counts.values(), strict=True)]
        free = dict(zip(counts, map(list, families), strict=True))
        kids = [free[question].pop(0) for question, _ in texts]
        yield [
            Extend([kid], tokens=text, keep_hidden=self.step)
            for kid, (_, text) in zip(kids, texts, strict=True)
            if text
        ]
        return (yield from self._look(kids))

    def _look(self, branches: Sequence[Branch]) -> Steps:
        if not self.step:
            rows = [[value] for value in (yield Score(branches, head=self.head))]
        else:
            head = self.head
            if self.statistics:
                matcher = branches[0].step_matcher(self.step)
                given = [
                    row
                    for branch in branches
                    for row in step_statistics(branch, branch.ends(matcher))
                ]
                head = partial(_with_statistics, self.head, torch.tensor(given))
            rows = yield Score(branches, head=head, at=self.step)
        return [[float(value) for value in row] for row in rows]


def _head(classifier: Classifier, kind: str, label: int | str | None) -> Callable[[Tensor], Tensor]:
    """The scores of one output."""
    if label is None and kind in classifier.labels:
        label = kind
    return partial(classifier.scores, label=classifier.column(label))


def _with_statistics(
    head: Callable[[Tensor], Tensor], statistics: Tensor, hidden: Tensor
) -> Tensor:
    return head(torch.cat([hidden, statistics.to(hidden)], dim=1))
