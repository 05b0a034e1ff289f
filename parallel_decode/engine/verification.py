"""A caller's draft and the rule by which it is verified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from parallel_decode.engine.draft_tree import DraftTree

VerifyRule = Literal["match", "rejection", "traversal", "typical"]
RULES = get_args(VerifyRule)


@dataclass(frozen=True, eq=False)
class Verification:
    """See `Verify`.

    draft_probs: [num_nodes, vocab_size] fp32, what each node was drawn from, before its siblings'
    tokens were taken out; None where the drafter did not draw.

    Raises:
        ValueError: there is no such rule, or draft_probs does not fit or has no use.
    """

    draft: DraftTree
    rule: VerifyRule
    draft_probs: Tensor | None
    replacement: bool

    def check(self, vocab_size: int) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        tokens = self.draft.tokens
        if len(tokens) and tokens.max() >= vocab_size:
            raise ValueError(
                f"a draft has token {tokens.max()}, outside the vocabulary of {vocab_size}"
            )
        q = self.draft_probs
        if q is None:
            return
        if self.rule not in ("rejection", "traversal"):
            raise ValueError(f"rule {self.rule!r} has no use for draft_probs")
        shape = (len(self.draft), vocab_size)
        if q.shape != shape or q.dtype != torch.float32:
            raise ValueError(
                f"draft_probs must be {list(shape)} float32, got {list(q.shape)} {q.dtype}"
            )

    def within(self, num_tokens: int) -> Verification:
        """What is left of it where a branch may get so many tokens: behind the last one nothing is
        asked."""
        kept = self.draft.depths < num_tokens
        if kept.all():
            return self
        q = None if self.draft_probs is None else self.draft_probs[torch.from_numpy(kept)]
        return replace(self, draft=self.draft.keep(kept), draft_probs=q)
