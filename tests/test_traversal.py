"""The definition of traversal: what it commits more, that wrong variants have another law, and its
random numbers; and the rules beside it: typical acceptance has another law, and drafts that match
what plain decoding draws have plain decoding's own tokens."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from parallel_decode import _C
from parallel_decode.kernels import ReferenceOps
from parallel_decode.kernels.acceptance import (
    NEXT_STREAM,
    TRAVERSAL_STREAM,
    Uniforms,
    Walk,
    accept,
    longest_path,
    verify_greedy,
)
from parallel_decode.kernels.traversal import traverse
from parallel_decode.kernels.typical import ALPHA, EPSILON, accept_typical
from tests.draft_batch import random_batch
from tests.draft_cases import SAMPLINGS, TREES, case_of
from tests.output_law import Case, committed_law, distance, tokens_per_step

EXACT = 1e-12

DEEP_TREES = {
    "chain of 2": (-1, 0),
    "chain of 3": (-1, 0, 1),
    "2 by 2": (-1, -1, 0, 0, 1, 1),
    "lopsided": (-1, 0, -1, 0, 2),
    "2 chains of 3": (-1, -1, 0, 1, 2, 3),
    "1 by 2": (-1, 0, 0),
}


# ---- more tokens ----


@pytest.mark.parametrize("sampling", ["replacement", "no replacement"])
@pytest.mark.parametrize("tree", DEEP_TREES.values(), ids=DEEP_TREES)
def test_a_deep_tree_commits_more_tokens_than_from_the_root(tree, sampling):
    case = case_of(tree, sampling, "full")
    assert tokens_per_step(traverse, case) > tokens_per_step(accept, case) + 1e-3


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("models", ["sparse", "ties", "filtered", "disjoint"])
@pytest.mark.parametrize("tree", DEEP_TREES.values(), ids=DEEP_TREES)
def test_no_tree_commits_fewer_tokens_than_from_the_root(tree, models, sampling):
    case = case_of(tree, sampling, models)
    more = tokens_per_step(traverse, case) - tokens_per_step(accept, case)
    # A deterministic child's law has nothing that could be put to better use.
    assert abs(more) < EXACT if sampling == "deterministic" else more > -EXACT


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("tree", [(-1,), (-1, -1), (-1, -1, -1)], ids=str)
def test_a_tree_of_depth_one_commits_as_many_as_from_the_root(tree, sampling):
    case = case_of(tree, sampling, "full", vocab_size=4)
    more = tokens_per_step(traverse, case) - tokens_per_step(accept, case)
    assert abs(more) < EXACT


# ---- mistakes ----


def variant(mistake: str | None) -> Callable[..., Walk]:
    """Traversal once more, with one law of the tokens and of the failure (its last entry), and with
    one mistake."""

    def walk(tokens, parents, p, q, deterministic, replacement, max_depth, position, uniforms):
        def visit(node, path, a):
            law = np.append(a * p[1 + node], 1 - a)
            children = [n for n, parent in enumerate(parents) if parent == node]
            left = q[children[0]].copy() if children else None
            for child in children:
                x = tokens[child]
                drawn = np.append(left, 0)
                if deterministic[child] and mistake != "deterministic children as drawn":
                    drawn = np.eye(len(law))[x]
                if drawn[x] == 0:
                    continue
                weight = min(1.0, law[x] / drawn[x])
                if mistake == "weight of the parent left out":
                    weight = min(1.0, p[1 + node][x] / drawn[x])
                found = visit(child, [*path, child], weight)
                if found:
                    return found
                before, rest = law, np.maximum(law - drawn, 0)
                if mistake == "no residual":
                    rest = law
                if rest.sum() > 0:
                    law = rest / rest.sum()
                fails = law[-1]
                if mistake == "weight stays":
                    fails = before[-1]
                elif mistake == "weight is the residual's mass" and node >= 0:
                    fails = 1 - rest[:-1].sum()
                elif mistake == "weight without its failure":
                    fails = 0.0
                if law[:-1].sum() > 0:
                    law = np.append(law[:-1] * (1 - fails) / law[:-1].sum(), fails)
                if not replacement and mistake != "q keeps failed tokens":
                    left = np.where(np.arange(len(left)) == x, 0, left)
                    left = left / left.sum() if left.sum() > 0 else left
            number = 0 if mistake == "one uniform for all nodes" else node
            accepted = law[:-1].sum()
            if node < 0 or uniforms.below(accepted, position, TRAVERSAL_STREAM + number):
                next_law = p[1 + node] if mistake == "next token without residual" else law[:-1]
                return path, uniforms.choose(next_law, position + len(path), NEXT_STREAM)
            return None

        return visit(-1, [], 1.0)

    return walk


@pytest.mark.parametrize(
    ("mistake", "sampling"),
    [
        ("weight stays", "replacement"),
        ("weight is the residual's mass", "replacement"),
        ("weight without its failure", "replacement"),
        ("weight of the parent left out", "replacement"),
        ("no residual", "replacement"),
        ("next token without residual", "replacement"),
        ("q keeps failed tokens", "no replacement"),
        ("deterministic children as drawn", "deterministic"),
        ("one uniform for all nodes", "replacement"),
    ],
)
@pytest.mark.parametrize("tree", [(-1, -1, 0, 0, 1, 1), (-1, 0, 0, 1, 2)], ids=str)
def test_known_mistakes_are_seen(tree, mistake, sampling):
    case = case_of(tree, sampling, "full")
    # A first node that may well fail, and behind it siblings of which several may.
    for path, p, q in (
        ((), [5, 2, 3], [2, 5, 3]),
        *(((x,), [9, 7, 4], [6, 2, 12]) for x in range(3)),
    ):
        case.target[path], case.draft[path] = np.array(p) / sum(p), np.array(q) / sum(q)
    assert distance(committed_law(variant(None), case), case) < EXACT
    assert distance(committed_law(variant(mistake), case), case) > 5e-3


# ---- the random numbers ----


class Recorder(Uniforms):
    """Keeps which numbers were used."""

    def __init__(self, key: int, used: list[tuple[int, int]]) -> None:
        super().__init__(key)
        self.used = used

    def _uniform(self, index: int, stream: int) -> float:
        self.used.append((index, stream))
        return super()._uniform(index, stream)


@pytest.mark.parametrize("rule", [accept, traverse])
def test_no_number_is_used_twice_over_many_steps(rule):
    """A step must not be decided by a number that another one has looked at."""
    used: list[tuple[int, int]] = []
    position, lengths = 100, set()
    for seed in range(200):
        batch = random_batch(seed, [8], 5)
        path, token = rule(
            batch.draft_tokens.tolist(),
            batch.parents.tolist(),
            batch.p.double().numpy(),
            batch.q.double().numpy(),
            batch.deterministic.tolist(),
            bool(seed % 2),
            8,
            position,
            Recorder(7, used),
        )
        assert used[-1] == (position + len(path), NEXT_STREAM) and token >= 0
        lengths.add(len(path))
        position += len(path) + 1
    assert len(set(used)) == len(used)
    assert lengths >= {0, 1, 2}


def test_a_node_has_a_number_of_its_own_below_those_of_other_rules():
    used: list[tuple[int, int]] = []
    batch = random_batch(3, [12], 5, deterministic=0)
    q = np.full((12, 5), 0.2)
    p = np.full((13, 5), 0.01)
    tokens = (batch.draft_tokens % 5).tolist()
    uniforms = Recorder(7, used)
    traverse(tokens, [-1] * 12, p, q, [False] * 12, True, 8, 50, uniforms)
    nodes = [stream - TRAVERSAL_STREAM for index, stream in used[:-1] if index == 50]
    assert nodes and nodes == sorted(set(nodes)) and set(nodes) <= set(range(12))


# ---- typical acceptance ----


def typical(tokens, parents, p, q, deterministic, replacement, max_depth, position, uniforms):
    return accept_typical(tokens, parents, p, EPSILON, ALPHA, max_depth, position, uniforms)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_typical_acceptance_is_not_lossless(tree, sampling):
    case = case_of(tree, sampling, "full")
    assert distance(committed_law(typical, case), case) > 1e-2


# ---- drafts that match ----


def match(case: Case) -> Callable[..., Walk]:
    """Plain decoding's own draw behind every node, walked by the longest path that has them. As
    deterministic drafts are no chance, a uniform at each position is all there is of it."""

    def walk(tokens, parents, p, q, deterministic, replacement, max_depth, position, uniforms):
        depth = [len(case.path_to(node)) for node in range(-1, len(tokens))]
        drawn: dict[int, int] = {}

        def draw(node: int) -> int:
            if node not in drawn:
                drawn[node] = uniforms.choose(p[1 + node], position + depth[1 + node], 0)
            return drawn[node]

        path = longest_path(parents, max_depth, lambda n: tokens[n] == draw(parents[n]))
        return path, draw(path[-1] if path else -1)

    return walk


@pytest.mark.parametrize("models", ["full", "sparse", "filtered"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_matching_drafts_have_the_targets_law(tree, models):
    case = case_of(tree, "deterministic", models)
    assert distance(committed_law(match(case), case), case) < EXACT


def test_matching_drafts_give_the_tokens_of_plain_decoding():
    """Over many steps, with filters, from one key: whatever is drafted, token by token the same."""
    ops, key, vocab_size, length = ReferenceOps(), 12345, 6, 120

    def logits_behind(tokens: list[int]) -> torch.Tensor:
        row = np.random.default_rng([len(tokens), *tokens[-3:]]).normal(size=vocab_size) * 2
        row[tokens[-2:]] -= 1.0  # a penalty that depends on the path
        return torch.from_numpy(row)

    def draws(rows: list[torch.Tensor], positions: list[int]) -> np.ndarray:
        n = len(rows)
        filters = (np.full(n, 0.9), np.full(n, 4), np.full(n, 0.95), np.full(n, 0.02))
        uniform = _C.uniforms(np.full(n, key, np.uint64), np.array(positions), 0)
        return ops.sample(torch.stack(rows), *filters, uniform)

    plain = [0, 1]
    while len(plain) < length:
        plain.append(int(draws([logits_behind(plain)], [len(plain)])[0]))

    rng = np.random.default_rng(0)
    tokens, accepted = [0, 1], 0
    while len(tokens) < length:
        batch = random_batch(int(rng.integers(1000)), [8], vocab_size)
        parents, drafted = batch.parents.tolist(), (batch.draft_tokens % vocab_size).tolist()
        paths = {-1: tokens}
        for node, parent in enumerate(parents):
            paths[node] = [*paths[parent], drafted[node]]
        argmax = draws([logits_behind(p) for p in paths.values()], [len(p) for p in paths.values()])
        out = verify_greedy(
            torch.from_numpy(argmax), torch.tensor(drafted), batch.parents, batch.cu_nodes
        )
        path = out.path[0, : int(out.num_accepted[0])].tolist()
        tokens = [*tokens, *(drafted[node] for node in path), int(out.next_token[0])]
        accepted += len(path)
    assert tokens[:length] == plain and accepted > 10
