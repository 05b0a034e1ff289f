"""`DrawnTrees`: draft trees whose tokens a model draws, and what they were drawn from."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.next_token_laws import NextTokenLaws, Path
from parallel_decode.engine.draft_tree import DraftTree

SHAPES: dict[str, tuple[int, ...]] = {
    "chain of 2": (-1, 0),
    "chain of 4": (-1, 0, 1, 2),
    "chain of 6": (-1, 0, 1, 2, 3, 4),
    "chain of 14": tuple(range(-1, 13)),
    "4 children": (-1, -1, -1, -1),
    "2 by 1": (-1, -1, 0, 1),
    "2 by 2": (-1, -1, 0, 0, 1, 1),
    "3 by 1": (-1, -1, -1, 0, 1, 2),
    "2 by 2 by 2": (-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5),
    "4 by 2 by 1, lopsided": (-1, -1, -1, -1, 0, 0, 1, 1, 2, 3, 4, 5, 6, 10),
}
"""Parents of the nodes, level by level."""


def depth_of(parents: Sequence[int]) -> int:
    depths = [0]
    for parent in parents:
        depths.append(depths[1 + parent] + 1)
    return max(depths)


class DrawnTrees:
    """Trees of one shape behind one prompt.

    Args:
        laws: of the drafting model.
        parents: of the nodes, each after its parent.
        how: "replacement": siblings are drawn independently; "no replacement": from what the ones
            before them leave; "chosen": the most probable ones, nothing is drawn.
    """

    def __init__(self, laws: NextTokenLaws, parents: Sequence[int], how: str) -> None:
        if how not in ("replacement", "no replacement", "chosen"):
            raise ValueError(f"siblings are not drawn by {how!r}")
        self.laws, self.parents, self.how = laws, tuple(parents), how

    def draw(
        self, count: int, rng: np.random.Generator, begin: Sequence[Path] | None = None
    ) -> tuple[list[list[int]], Tensor]:
        """begin: what stands behind the prompt already -> (tokens of each tree, q [count,
        num_nodes, vocab_size], what a node's parent says of its children)."""
        roots = [()] * count if begin is None else begin
        tokens: list[list[int]] = [[] for _ in range(count)]
        paths: list[list[Path]] = [[root] for root in roots]
        rows = []
        for node, parent in enumerate(self.parents):
            law = self.laws.of([path[1 + parent] for path in paths])
            rows.append(law)
            left = law.double()
            siblings = [n for n in range(node) if self.parents[n] == parent]
            if siblings and self.how != "replacement":
                taken = torch.tensor([[tree[n] for n in siblings] for tree in tokens])
                left = left.scatter(1, taken, 0.0)
            sums = left.cumsum(1)
            if self.how == "chosen":
                picked = left.argmax(1)
            else:
                u = torch.from_numpy(rng.random((count, 1))) * sums[:, -1:]
                picked = torch.searchsorted(sums, u, right=True)[:, 0]
            # With nothing left the drafter fills up with token 0, which no rule takes for a draw.
            picked = torch.where(sums[:, -1] > 0, picked.clamp(max=law.shape[1] - 1), 0)
            for tree, path, token in zip(tokens, paths, picked.tolist(), strict=True):
                tree.append(token)
                path.append((*path[1 + parent], token))
        return tokens, torch.stack(rows, 1)

    def tree(self, tokens: Sequence[int]) -> DraftTree:
        return DraftTree.of(tokens, self.parents)
