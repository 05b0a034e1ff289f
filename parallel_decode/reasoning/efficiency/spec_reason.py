"""SpecReason: a small model writes steps, the large one keeps or rewrites them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import (
    Branch,
    Delegate,
    Engine,
    Extend,
    Prefill,
    Prune,
    Rollback,
    SamplingParams,
    Steps,
)
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.ranking.generative_verifier import LlmJudge
from parallel_decode.reasoning.scorer import Scorer, score_branches
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies


@dataclass(frozen=True)
class SpecReason(Method):
    """D copies the question, P grows each copy step by step, A lets the answers vote. A step is the
    small model's where the scorer likes the text with it, else the large model writes its own.

    Not lossless, unless the threshold is above all scores: then every branch is what plain sampling
    gives. The end of a text is always the large model's to say. The small model finds what it has
    read before among its stored prefixes; its tokens count as `Usage.delegated_tokens`.

    Args:
        draft: engine of the small model, with the same vocabulary; None for none.
        scorer: of the text up to a drafted step. By default the large model grades it.
        threshold: of a score from which on a drafted step stays. The paper takes 7 of 9.
        n: branches.
        step: string that ends a step.
        max_steps: steps of a branch at the most.
        params: how both models draw; max_tokens is that of one step, which goes on as the next one.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "spec-reason",
        "efficiency",
        "Pan et al., 2025",
        ("prefill", "fork", "extend", "score", "rollback", "delegate"),
    )

    draft: Engine | None = None
    scorer: Scorer = field(default_factory=LlmJudge)
    threshold: float = 7.0
    n: int = 1
    step: str = "\n"
    max_steps: int = 40
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=64))
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._grow, Select(self.extract))

    @property
    def _growth(self) -> Growth:
        return Growth(self.step, self.max_steps, self.params)

    def prepare(self, engine: Engine) -> None:
        small = self.draft
        if small is not None:
            sizes = small.config.vocab_size, engine.config.vocab_size
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"{small.name!r} has a vocabulary of {sizes[0]} tokens, {engine.name!r} of"
                    f" {sizes[1]}"
                )
            if small.max_seq_len > engine.max_seq_len:
                raise ValueError(
                    f"the context of {small.name!r} is {small.max_seq_len}, over that of"
                    f" {engine.name!r}: open it with max_seq_len={engine.max_seq_len}"
                )
        super().prepare(engine)

    def _grow(self, branches: Sequence[Branch]) -> Steps:
        growth = self._growth
        live = list(branches)
        for _ in range(self.max_steps):
            rewritten = yield from self._rejected(live)
            lengths = {id(branch): branch.num_tokens for branch in rewritten}
            yield from growth.extend(rewritten)
            # What the small model wrote has not ended, whatever came last.
            live = [
                branch
                for branch in live
                if id(branch) not in lengths or self._goes_on(branch, lengths[id(branch)])
            ]
            if not live:
                break
        return branches

    def _goes_on(self, branch: Branch, length: int) -> bool:
        """After a step of the large model on `length` tokens."""
        if branch.finish_reason == "length":
            # Short of max_tokens it is the context that is full.
            return branch.num_tokens - length == self.params.max_tokens
        return branch.finish_reason == "stop" and branch.stop_string == self.step

    def _rejected(self, branches: Sequence[Branch]) -> Steps:
        """Gives branches the small model's next step where it is good enough -> the others."""
        if self.draft is None or not branches:
            return list(branches)
        short = [b for b in branches if b.num_tokens < self.draft.max_seq_len]
        steps = yield Delegate(self.draft, self._written([branch.tokens for branch in short]))
        drafted = [(branch, step) for branch, step in zip(short, steps, strict=True) if step]
        before = [branch.num_tokens for branch, _ in drafted]
        yield [Extend([branch], tokens=step) for branch, step in drafted]
        tried = [branch for branch, _ in drafted]
        scores = yield from score_branches(self.scorer, tried)
        refused = [
            (branch, length)
            for branch, length, score in zip(tried, before, scores, strict=True)
            if score < self.threshold
        ]
        yield [Rollback(branch, length) for branch, length in refused]
        accepted = set(map(id, tried)) - {id(branch) for branch, _ in refused}
        return [branch for branch in branches if id(branch) not in accepted]

    def _written(self, prefixes: Sequence[Sequence[int]]) -> Steps:
        """On the small engine: the next step behind each text, without an end -> token ids; none
        where it failed or only ends."""
        roots = yield [Prefill(tokens) for tokens in prefixes]
        yield from self._growth.extend(roots)
        steps = []
        for root, tokens in zip(roots, prefixes, strict=True):
            end = root.num_tokens - (root.finish_reason == "eos")
            steps.append(root.tokens[len(tokens) : end] if root.status != "failed" else [])
        yield Prune(roots)
        return steps
