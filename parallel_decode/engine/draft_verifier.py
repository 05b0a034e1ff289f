"""Which nodes of computed drafts are right."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from parallel_decode.engine.draft_tree import walk
from parallel_decode.engine.draws import Draws
from parallel_decode.engine.sampler import Sampler
from parallel_decode.engine.verified import NOTHING_DRAWN
from parallel_decode.kernels import Ops


class Committed(NamedTuple):
    """The nodes of a draft that are right, from the first level down, and the tokens of these and
    one more, -1 where there is nothing to choose from.

    drawn: as in `Verified`; by a rule that draws at the last node alone it is empty.
    """

    path: list[int]
    tokens: list[int]
    drawn: NDArray[np.int64] = NOTHING_DRAWN


class DraftVerifier:
    """Decides by each draft's rule; see `Verify`. What a speculator drafts has to match.

    Args:
        sampler: of the branches.
        ops: whose rules are used.
    """

    def __init__(self, sampler: Sampler, ops: Ops) -> None:
        self._sampler = sampler
        self._ops = ops

    def verify(self, draws: Draws) -> list[Committed]:
        """One result a draft."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for number, work in enumerate(draws.works):
            asked = work.verification
            kind = ("match", False) if asked is None else (asked.rule, asked.replacement)
            groups.setdefault(kind, []).append(number)
        results: dict[int, Committed] = {}
        for (rule, replacement), numbers in groups.items():
            own = draws.of(numbers)
            if rule == "match":
                of_group = self._match(own)
            else:
                of_group = self._accept(own, rule, replacement)
            results.update(zip(numbers, of_group, strict=True))
        return [results[number] for number in range(len(draws.works))]

    def _match(self, draws: Draws) -> list[Committed]:
        """Every node draws as the branch would behind it, with the random number that is the
        branch's own there. A draft token is right where the token in front of it draws just that:
        what branches get is what they would get one by one."""
        drawn = self._sampler.tokens(draws)
        numbers = drawn.tolist()
        return [
            Committed(
                path,
                [numbers[first], *[numbers[first + 1 + node] for node in path]],
                drawn[first : first + size],
            )
            for path, first, size in zip(
                walk(draws.drafts, drawn), draws.firsts.tolist(), draws.sizes.tolist(), strict=True
            )
        ]

    def _accept(self, draws: Draws, rule: str, replacement: bool) -> list[Committed]:
        """By a rule of `kernels.ops.Ops`, from the distributions that the branches draw from."""
        logits, (temperature, top_k, top_p, min_p) = self._sampler.filtered(draws)
        p = self._ops.probabilities(logits, temperature, top_k, top_p, min_p)
        drafts = draws.drafts
        tokens, parents, cu_nodes, key_bits, positions = (
            column.to(p.device)
            for column in (
                torch.from_numpy(np.concatenate([draft.tokens for draft in drafts])),
                torch.from_numpy(np.concatenate([draft.parents for draft in drafts])),
                torch.from_numpy(np.cumsum([0, *map(len, drafts)], dtype=np.int32)),
                torch.from_numpy(draws.keys.view(np.int64)),
                torch.tensor([work.branch.num_tokens for work in draws.works]),
            )
        )
        if rule == "typical":
            accepted = self._ops.verify_typical(p, tokens, parents, cu_nodes, key_bits, positions)
        else:
            q, deterministic = _laws(draws, p)
            by_rule = self._ops.verify_tree if rule == "rejection" else self._ops.verify_traversal
            accepted = by_rule(
                p, q, tokens, parents, cu_nodes, key_bits, positions, replacement, deterministic
            )
        counts, paths, following = (column.cpu().tolist() for column in accepted)
        return [
            Committed(path[:count], [*draft.tokens[path[:count]].tolist(), token])
            for draft, count, path, token in zip(drafts, counts, paths, following, strict=True)
        ]


def _laws(draws: Draws, p: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """q [num_nodes, vocab_size], and which nodes were not drawn; their rows are not read."""
    laws = [None if (v := work.verification) is None else v.draft_probs for work in draws.works]
    if all(law is None for law in laws):
        return None, None
    sizes = [len(draft) for draft in draws.drafts]
    rows = [
        p.new_zeros(size, p.shape[1]) if law is None else law.to(p.device)
        for law, size in zip(laws, sizes, strict=True)
    ]
    chosen = [law is None for law, size in zip(laws, sizes, strict=True) for _ in range(size)]
    return torch.cat(rows), torch.tensor(chosen, device=p.device)
