"""Random drafts of a batch, as `acceptance` and `verify` take them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftBatch:
    """See `acceptance.verify_tree`."""

    p: Tensor
    q: Tensor
    draft_tokens: Tensor
    parents: Tensor
    cu_nodes: Tensor
    keys: Tensor
    positions: Tensor
    deterministic: Tensor

    @property
    def num_branches(self) -> int:
        return len(self.keys)

    def of(self, branches: Sequence[int]) -> "DraftBatch":
        """These branches, in this order."""
        bounds = self.cu_nodes.tolist()
        nodes = [n for b in branches for n in range(bounds[b], bounds[b + 1])]
        rows = [r for b in branches for r in range(bounds[b] + b, bounds[b + 1] + b + 1)]
        sizes = [bounds[b + 1] - bounds[b] for b in branches]
        return DraftBatch(
            self.p[rows],
            self.q[nodes],
            self.draft_tokens[nodes],
            self.parents[nodes],
            torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32),
            self.keys[list(branches)],
            self.positions[list(branches)],
            self.deterministic[nodes],
        )

    def row(self, branch: int, node: int = -1) -> int:
        """Of p."""
        return int(self.cu_nodes[branch]) + branch + 1 + node


def random_law(rng: np.random.Generator, vocab_size: int) -> np.ndarray:
    """Some tokens have no weight."""
    weights = rng.exponential(size=vocab_size) ** 2
    weights[rng.random(vocab_size) < 0.3] = 0
    if not weights.any():
        weights[rng.integers(vocab_size)] = 1
    return weights / weights.sum()


def random_batch(
    seed: int, sizes: Sequence[int], vocab_size: int, deterministic: float = 0.3
) -> DraftBatch:
    """sizes: nodes of each branch; deterministic: their part. One token in ten is no draw of q."""
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, flags = [], [], [], [], []
    for size in sizes:
        above = [int(rng.integers(-1, node)) if node else -1 for node in range(size)]
        # Near enough to each other that children are accepted as well as rejected.
        laws = [random_law(rng, vocab_size) for _ in range(size + 1)]
        p += [0.5 * law + 0.5 * random_law(rng, vocab_size) for law in laws]
        draft = [0.8 * law + 0.2 * random_law(rng, vocab_size) for law in laws]
        for parent in above:
            law = draft[1 + parent]
            token = int(rng.choice(vocab_size, p=law))
            if rng.random() < 0.1:
                token = int(rng.integers(-1, vocab_size + 1))
            flagged = rng.random() < deterministic
            tokens.append(token)
            flags.append(flagged)
            q.append(np.full(vocab_size, np.nan) if flagged else law)
        parents += above
    num_branches, num_nodes = len(sizes), len(tokens)
    return DraftBatch(
        torch.tensor(np.array(p), dtype=torch.float32).view(-1, vocab_size),
        torch.tensor(np.array(q), dtype=torch.float32).view(num_nodes, vocab_size),
        torch.tensor(tokens, dtype=torch.int64),
        torch.tensor(parents, dtype=torch.int32),
        torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32),
        torch.from_numpy(rng.integers(-(2**63), 2**63, num_branches)),
        torch.from_numpy(rng.integers(0, 2**40, num_branches)),
        torch.tensor(flags, dtype=torch.bool),
    )
