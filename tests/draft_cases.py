"""Small trees and pairs of models, for `output_law` to enumerate."""

import itertools

import numpy as np
import torch

from parallel_decode.kernels import ReferenceOps
from tests.draft_batch import random_law
from tests.output_law import Case, Model

TREES = {
    "chain of 1": (-1,),
    "chain of 2": (-1, 0),
    "2 children": (-1, -1),
    "3 children": (-1, -1, -1),
    "2 by 2": (-1, -1, 0, 0, 1, 1),
    "lopsided": (-1, 0, -1, 0, 2),
}
SAMPLINGS = ["replacement", "no replacement", "deterministic", "mixed", "mixed, no replacement"]


def depth_of(tree: tuple[int, ...]) -> int:
    depth = {-1: 0}
    for node, parent in enumerate(tree):
        depth[node] = depth[parent] + 1
    return max(depth.values())


def random_model(seed: int, vocab_size: int, depth: int, sparse: bool) -> Model:
    rng = np.random.default_rng(seed)
    return {
        path: random_law(rng, vocab_size) if sparse else rng.dirichlet(np.ones(vocab_size))
        for length in range(depth + 1)
        for path in itertools.product(range(vocab_size), repeat=length)
    }


def model_with_ties(seed: int, vocab_size: int, depth: int) -> Model:
    """All probabilities are multiples of 1/4: p and q agree at many tokens, and are 0 at many."""
    rng = np.random.default_rng(seed)
    return {
        path: rng.multinomial(4, np.full(vocab_size, 1 / vocab_size)) / 4
        for length in range(depth + 1)
        for path in itertools.product(range(vocab_size), repeat=length)
    }


def filtered_model(seed: int, vocab_size: int, depth: int) -> Model:
    """Logits with penalties on what the path holds, then temperature and filters, each path's own:
    what an engine makes of a model before it draws."""
    rng = np.random.default_rng(seed)
    paths = [p for n in range(depth + 1) for p in itertools.product(range(vocab_size), repeat=n)]
    logits = rng.normal(size=(len(paths), vocab_size)) * 2
    for row, path in zip(logits, paths):
        seen = list(set(path))
        row[seen] = np.where(row[seen] > 0, row[seen] / 1.5, row[seen] * 1.5)
        row[seen] -= 0.4 + 0.2 * np.bincount(path, minlength=vocab_size)[seen] if path else 0
    p = ReferenceOps().probabilities(
        torch.from_numpy(logits),
        rng.choice([0.0, 0.6, 1.0, 1.7], len(paths), p=[0.1, 0.3, 0.3, 0.3]),
        rng.choice([0, 2, 3], len(paths)),
        rng.choice([0.7, 0.95, 1.0], len(paths)),
        rng.choice([0.0, 0.1], len(paths)),
    )
    laws = p.double().numpy()
    return dict(zip(paths, laws / laws.sum(1, keepdims=True)))


def case_of(tree: tuple[int, ...], sampling: str, models: str, vocab_size: int = 3) -> Case:
    """sampling: one of SAMPLINGS; models: full, sparse, equal, disjoint, ties or filtered."""
    every_other = tuple(node % 2 == 0 for node in range(len(tree)))
    flags = {"mixed": every_other, "deterministic": (True,) * len(tree)}
    depth = depth_of(tree)
    target = random_model(1, vocab_size, depth, models == "sparse")
    draft = random_model(2, vocab_size, depth, models == "sparse")
    if models == "ties":
        target, draft = (model_with_ties(seed, vocab_size, depth) for seed in (1, 2))
    elif models == "filtered":
        target, draft = (filtered_model(seed, vocab_size, depth) for seed in (1, 2))
    elif models == "equal":
        draft = target
    elif models == "disjoint":
        target = {path: np.eye(vocab_size)[0] for path in target}
        draft = {path: np.r_[0, p[1:] / p[1:].sum()] for path, p in draft.items()}
    return Case(
        tree,
        "no replacement" not in sampling,
        flags.get(sampling.split(",")[0], (False,) * len(tree)),
        target,
        draft,
        vocab_size,
    )
