"""The definition of acceptance: its exact output law, and that wrong variants have another one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from parallel_decode.kernels.acceptance import (
    ACCEPT_STREAM,
    NEXT_STREAM,
    Uniforms,
    Walk,
    accept,
    verify_tree,
)
from parallel_decode.kernels.traversal import traverse
from tests.draft_batch import random_batch
from tests.draft_cases import SAMPLINGS, TREES, case_of
from tests.output_law import committed_law, distance, tokens_per_step

EXACT = 1e-12

rules = pytest.mark.parametrize("rule", [accept, traverse])


# ---- the law ----


@pytest.mark.parametrize("models", ["full", "sparse", "equal", "disjoint", "ties", "filtered"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@rules
def test_what_is_committed_has_the_targets_law(rule, tree, sampling, models):
    case = case_of(tree, sampling, models)
    law = committed_law(rule, case)
    assert abs(law.sum() - 1) < EXACT
    assert distance(law, case) < EXACT
    # The first token, and the first two, once more from the target itself.
    first = law.reshape(3, -1).sum(1)
    assert np.abs(first - case.target[()]).sum() < EXACT
    pairs = law.reshape(3, 3, -1).sum(2)
    assert np.abs(pairs - [case.target[()][x] * case.target[x,] for x in range(3)]).sum() < EXACT


@rules
def test_a_long_chain_has_the_targets_law(rule):
    case = case_of((-1, 0, 1, 2), "replacement", "full", vocab_size=2)
    assert distance(committed_law(rule, case), case) < EXACT


@pytest.mark.parametrize("sampling", SAMPLINGS)
@rules
def test_trees_of_three_levels_have_the_targets_law(rule, sampling):
    for tree, models in (((-1, 0, 0, 1), "full"), ((-1, -1, 0, 1, 2), "filtered")):
        case = case_of(tree, sampling, models)
        assert case.depth == 3
        assert distance(committed_law(rule, case), case) < EXACT


@pytest.mark.parametrize("models", ["sparse", "ties", "filtered"])
@pytest.mark.parametrize("vocab_size", [4, 5])
@rules
def test_larger_vocabularies_have_the_targets_law(rule, vocab_size, models):
    for sampling in ("replacement", "mixed, no replacement"):
        case = case_of((-1, -1, 0), sampling, models, vocab_size)
        assert distance(committed_law(rule, case), case) < EXACT


@rules
def test_more_children_than_tokens(rule):
    for sampling in SAMPLINGS:
        case = case_of((-1, -1, -1, -1), sampling, "full", vocab_size=2)
        assert distance(committed_law(rule, case), case) < EXACT


@rules
def test_a_tree_that_is_cut_has_the_targets_law(rule):
    case = case_of(TREES["2 by 2"], "no replacement", "full")

    def cut(*arguments: object) -> Walk:
        *before, _, position, uniforms = arguments
        return rule(*before, 1, position, uniforms)

    assert distance(committed_law(cut, case), case) < EXACT


@pytest.mark.parametrize("sampling", ["replacement", "no replacement"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@rules
def test_a_drafter_that_is_the_target_is_never_rejected(rule, tree, sampling):
    case = case_of(tree, sampling, "equal")
    assert tokens_per_step(rule, case) == pytest.approx(case.depth + 1, abs=EXACT)


@pytest.mark.parametrize("sampling", ["replacement", "no replacement"])
@pytest.mark.parametrize("tree", [(-1,), (-1, 0), (-1, -1), (-1, -1, 0)], ids=str)
@rules
def test_q_must_be_what_was_drawn_from(rule, tree, sampling):
    """Tokens of top-2, and a q that was not cut: what a drafter with filters of its own does."""
    case = case_of(tree, sampling, "full", vocab_size=4)
    whole = {path: np.array([0.4, 0.3, 0.2, 0.1]) for path in case.draft}
    top_2 = {path: np.array([4, 3, 0, 0]) / 7 for path in case.draft}
    assert distance(committed_law(rule, replace(case, draft=whole)), case) < EXACT
    assert distance(committed_law(rule, replace(case, draft=top_2)), case) < EXACT

    def claims(tokens, parents, p, q, *others):
        return rule(tokens, parents, p, np.tile(whole[()], (len(q), 1)), *others)

    assert distance(committed_law(claims, replace(case, draft=top_2)), case) > 1e-2


def variant(mistake: str | None) -> Callable[..., Walk]:
    """Multi-round rejection once more, node by node, with one mistake."""

    def walk(tokens, parents, p, q, deterministic, replacement, max_depth, position, uniforms):
        path, current, target = [], -1, p[0]
        while len(path) < max_depth:
            index = position + len(path)
            children = [node for node, parent in enumerate(parents) if parent == current]
            if mistake == "siblings in the wrong order":
                children.reverse()
            left = q[children[0]].copy() if children else None
            for rank, node in enumerate(children):
                x = tokens[node]
                law = left
                if deterministic[node] and mistake != "deterministic children as drawn":
                    law = np.eye(len(target))[x]
                if law[x] == 0:
                    continue
                ratio = target[x] / law[x]
                if mistake == "p and q swapped":
                    ratio = law[x] / target[x] if target[x] > 0 else 1.0
                same = mistake == "one uniform for all rounds"
                if uniforms.below(ratio, index, ACCEPT_STREAM + (0 if same else rank)):
                    break
                rest = np.maximum(target - law, 0)
                if mistake != "no residual" and rest.sum() > 0:
                    target = rest if mistake == "residual not normalised" else rest / rest.sum()
                if not replacement and mistake != "q keeps rejected tokens":
                    left = np.where(np.arange(len(left)) == x, 0, left)
                    if mistake != "q not normalised" and left.sum() > 0:
                        left = left / left.sum()
            else:
                break
            path.append(node)
            current, target = node, p[1 + node]
        stream = ACCEPT_STREAM if mistake == "the test's uniform draws" else NEXT_STREAM
        return path, uniforms.choose(target, position + len(path), stream)

    return walk


@pytest.mark.parametrize(
    ("mistake", "sampling"),
    [
        ("no residual", "replacement"),
        ("residual not normalised", "replacement"),
        ("q not normalised", "no replacement"),
        ("q keeps rejected tokens", "no replacement"),
        ("siblings in the wrong order", "no replacement"),
        ("p and q swapped", "replacement"),
        ("deterministic children as drawn", "deterministic"),
        ("one uniform for all rounds", "replacement"),
        ("the test's uniform draws", "replacement"),
    ],
)
@pytest.mark.parametrize("tree", [(-1, -1), (-1, -1, -1), (-1, 0, -1, 2)], ids=str)
def test_known_mistakes_are_seen(tree, mistake, sampling):
    case = case_of(tree, sampling, "full", vocab_size=4)
    # Token 3 leaves a residual that may well reject token 0, and one of two tokens then.
    case.target[()] = np.array([0.32, 0.3, 0.28, 0.1])
    case.draft[()] = np.array([0.3, 0.1, 0.05, 0.55])
    assert distance(committed_law(variant(None), case), case) < EXACT
    assert distance(committed_law(variant(mistake), case), case) > 1e-3


# ---- the random numbers ----


class Recorder(Uniforms):
    """Keeps which numbers were used."""

    def __init__(self, key: int) -> None:
        super().__init__(key)
        self.used: list[tuple[int, int]] = []

    def _uniform(self, index: int, stream: int) -> float:
        self.used.append((index, stream))
        return super()._uniform(index, stream)


def test_each_number_is_used_once_and_belongs_to_its_position():
    for seed in range(100):
        batch = random_batch(seed, [8], 5)
        uniforms = Recorder(int(batch.keys[0]))
        path, _ = accept(
            batch.draft_tokens.tolist(),
            batch.parents.tolist(),
            batch.p.double().numpy(),
            batch.q.double().numpy(),
            batch.deterministic.tolist(),
            bool(seed % 2),
            8,
            100,
            uniforms,
        )
        assert len(set(uniforms.used)) == len(uniforms.used)
        assert uniforms.used[-1] == (100 + len(path), NEXT_STREAM)
        for index, stream in uniforms.used[:-1]:
            assert 100 <= index <= 100 + len(path)
            assert ACCEPT_STREAM <= stream < ACCEPT_STREAM + 8


def test_sampled_tokens_have_the_targets_law():
    """The same with numbers instead of intervals: they are as good as fresh ones."""
    num_keys, p, q = 4000, torch.tensor([0.1, 0.6, 0.3]), torch.tensor([0.5, 0.2, 0.3])
    tokens = torch.from_numpy(np.random.default_rng(0).choice(3, size=2 * num_keys, p=q.numpy()))
    out = verify_tree(
        p.expand(3 * num_keys, 3),
        q.expand(2 * num_keys, 3),
        tokens,
        torch.tensor([-1, -1] * num_keys, dtype=torch.int32),
        torch.arange(0, 2 * num_keys + 1, 2, dtype=torch.int32),
        torch.arange(num_keys),
        torch.zeros(num_keys, dtype=torch.int64),
        replacement=True,
    )
    accepted = out.num_accepted == 1
    drafted = tokens.view(num_keys, 2).gather(1, out.path.clamp(min=0).long())[:, 0]
    first = torch.where(accepted, drafted, out.next_token)
    for drawn in (first, out.next_token[accepted]):
        expected = len(drawn) * p
        chi_square = ((torch.bincount(drawn, minlength=3) - expected) ** 2 / expected).sum()
        assert float(chi_square) < 13.8  # 2 degrees of freedom: 1 in 1000
