"""One branch in motion: what the scheduler carries from step to step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any

from torch import Tensor

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Operation
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.stop import StopMatcher
from parallel_decode.engine.verification import Verification

Finish = Callable[[], Any]
"""Gives the result of an operation once its works are done."""
NO_TOKENS: Set[int] = frozenset()


class Work:
    """Computes a branch's pending tokens and then, with `params`, samples until something ends it.

    Attributes:
        recorded: numbers of the tokens whose log-probability is recorded as they are computed.
        num_generated: tokens sampled by this work.
        num_before: tokens sampled just before by works that it goes on from: they ended at their
            length, and a stop string may have begun in them.
        inbox: (tokens, safe point) of messages not yet taken.
        kept: finds the strings at whose ends hidden states are kept.
        key: of its branch's draws, once it has drawn.
        claimed: tokens whose blocks are claimed in the prefix tree.
        admitted: whether it has been looked up there, maybe before a pre-emption.
        then: works that follow this one in the same operation.
        verification: a draft behind the branch's last token; the work ends with it.
        accepted: the nodes of that draft that were right.
        output_counts: how often the path has each token after the prompt, where its params edit
            logits; None where they do not.
        prompt_set: the prompt's tokens, for the same params.
    """

    __slots__ = (
        "accepted",
        "admitted",
        "branch",
        "claimed",
        "done",
        "inbox",
        "kept",
        "key",
        "matcher",
        "num_before",
        "num_generated",
        "on_token",
        "operation",
        "output_counts",
        "params",
        "prompt_set",
        "recorded",
        "then",
        "verification",
    )

    def __init__(
        self,
        branch: Branch,
        operation: Operation,
        params: SamplingParams | None = None,
        matcher: StopMatcher | None = None,
        on_token: Callable[[Branch, int], None] | None = None,
    ) -> None:
        self.branch = branch
        self.operation = operation
        self.params = params
        self.matcher = matcher
        self.on_token = on_token
        self.recorded = range(0)
        self.num_generated = 0
        self.num_before = 0
        self.inbox: tuple[tuple[Sequence[int], str | None], ...] = ()
        self.kept: StopMatcher | None = None
        self.key: int | None = None
        self.claimed: list[int] | None = None
        self.admitted = False
        self.then: Callable[[], list[Work]] | None = None
        self.done = False
        self.verification: Verification | None = None
        self.accepted: Sequence[int] = ()
        self.output_counts: Counter[int] | None = None
        self.prompt_set: Set[int] = NO_TOKENS
        if params is not None and params.edits_logits:
            # Penalties look at the whole path: the prompt's tokens once, generated ones by count.
            self.output_counts = Counter(branch.output_tokens)
            self.prompt_set = set(branch.tokens[: branch.prompt_length])

    def keep(self, first: int, hidden: Tensor, rows: Sequence[int]) -> None:
        """Of tokens `first` and following, whose hidden states are `rows` of `hidden`, keeps those
        where a string ends."""
        if self.kept is None:
            return
        for number, row in enumerate(rows, first):
            if self.branch.completes(number, self.kept):
                # A copy: the whole step's tensor must not live as long as the branch.
                self.branch.kept_hidden[number] = hidden[row].clone()

    def num_reusable(self) -> int:
        """Of how many tokens the keys and values are enough, if they are found stored."""
        branch = self.branch
        limit = self.recorded.start if self.recorded else branch.num_tokens
        if self.kept is None:
            return limit
        missing = (
            number
            for number in range(branch.prompt_length, limit)
            if number not in branch.kept_hidden and branch.completes(number, self.kept)
        )
        return next(missing, limit)

    @property
    def sampling(self) -> SamplingParams:
        """The params of a work that samples."""
        assert self.params is not None
        return self.params
