"""`benchmarks.lossless` and `benchmarks.verification`: what they compare with is right."""

import math

import numpy as np
import pytest

from benchmarks.chain_of import main_path
from benchmarks.chi_square import chi_square
from benchmarks.drawn_trees import SHAPES, DrawnTrees, depth_of
from benchmarks.expected_length import expected_length
from benchmarks.next_token_laws import NextTokenLaws
from benchmarks.verification import matched
from parallel_decode.engine import SamplingParams
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.kernels.acceptance import accept
from parallel_decode.kernels.traversal import traverse
from tests.draft_cases import case_of
from tests.output_law import tokens_per_step
from tests.test_speculation_law import PARAMS, PROMPT, law_of_outputs
from tests.tiny_model import plain_logits, tiny_engine

RULES = {"top-down": accept, "traversal": traverse}


def test_chi_square_is_that_of_the_tables():
    law = {0: 0.5, 1: 0.25, 2: 0.25}
    found = chi_square({0: 60, 1: 20, 2: 20}, law)
    assert found.statistic == 4.0 and found.degrees == 2
    assert found.p_value == pytest.approx(math.exp(-2))  # of two degrees it is exp(-x / 2)
    assert chi_square({0: 50, 1: 25, 2: 25}, law).p_value == 1.0


def test_what_is_rare_or_unknown_is_one_cell():
    law = {0: 0.5, 1: 0.48, 2: 0.01, 3: 0.01}
    found = chi_square({0: 50, 1: 48, 3: 1, 7: 1}, law)
    assert found.degrees == 2 and found.statistic == pytest.approx(0)
    with pytest.raises(ValueError, match="2 cells of 100 counts"):
        chi_square({0: 100}, {0: 0.5, 1: 0.5})


def test_the_law_of_outputs_is_that_of_plain_prefills():
    # Without penalties, which no prefill of a prompt knows of.
    params = SamplingParams(temperature=1.2, top_p=0.6)
    laws = NextTokenLaws(tiny_engine(), PROMPT, params)
    outputs = laws.outputs(2)
    assert sum(outputs.values()) == pytest.approx(1, abs=1e-3) and len(outputs) > 20
    [row] = laws.of([(3,)]).double()
    whole = (plain_logits([*PROMPT, 3]).double() / 1.2).softmax(-1)
    kept = row > 0
    assert row[kept].tolist() == pytest.approx((whole[kept] / whole[kept].sum()).tolist(), abs=1e-5)
    assert whole[kept].min() >= whole[~kept].max()
    assert law_of_outputs(1).keys() <= {(token,) for token in PARAMS.allowed_tokens}


@pytest.mark.parametrize("sampling", ["replacement", "no replacement", "deterministic"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_expected_length_is_that_of_the_enumerated_law(rule, sampling):
    """Which enumerates the next token as well, and all that may be drafted."""
    case = case_of((-1, -1, 0, 0, 1), sampling, "full")
    total = 0.0
    for chance, tokens in case.drafts():
        nodes = range(len(tokens))
        p = np.stack([case.target[case.prefix(tokens, n)] for n in (-1, *nodes)])
        q = np.stack([case.draft[case.prefix(tokens, case.parents[n])] for n in nodes])
        law = None if sampling == "deterministic" else q
        total += chance * expected_length(rule, tokens, case.parents, p, law, case.replacement)
    assert total == pytest.approx(tokens_per_step(rule, case), abs=1e-12)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_of_chosen_tokens_no_rule_makes_more_than_match(rule):
    rng = np.random.default_rng(0)
    tokens, parents = [2, 0, 1, 1, 0], [-1, -1, 0, 0, 2]
    p = rng.dirichlet(np.ones(4), 6)
    expected = matched(tokens, parents, p)
    assert expected_length(rule, tokens, parents, p, None, False) == pytest.approx(expected)


@pytest.mark.parametrize("how", ["replacement", "no replacement", "chosen"])
def test_drawn_trees_have_the_law_that_they_say(how):
    laws = NextTokenLaws(tiny_engine(), PROMPT, SamplingParams(temperature=1.0, top_k=3))
    trees = DrawnTrees(laws, SHAPES["2 by 1"], how)
    tokens, q = trees.draw(400, np.random.default_rng(0))
    assert q.shape[:2] == (400, 4)
    root = laws.of([()])[0]
    assert (q[:, 0] == root).all() and (q[:, 1] == root).all()
    for tree, rows in zip(tokens, q, strict=True):
        assert (rows[2] == laws.of([(tree[0],)])[0]).all()
    equal = sum(tree[0] == tree[1] for tree in tokens)
    assert (equal > 0) == (how == "replacement")
    if how == "chosen":
        assert {tuple(tree[:2]) for tree in tokens} == {tuple(root.topk(2).indices.tolist())}
    else:
        counts = {token: sum(tree[0] == token for tree in tokens) for token in range(len(root))}
        law = {token: float(p) for token, p in enumerate(root) if p > 0}
        assert chi_square(counts, law).p_value > 1e-4


def test_shapes_say_their_depth():
    assert {name: depth_of(parents) for name, parents in SHAPES.items()} == {
        name: int(DraftTree.of([0] * len(parents), parents).depths.max())
        for name, parents in SHAPES.items()
    }
    with pytest.raises(ValueError, match="'luck'"):
        DrawnTrees(NextTokenLaws(tiny_engine(), PROMPT, PARAMS), (-1,), "luck")


def test_the_main_path_is_the_most_probable_child_each_time():
    tree = DraftTree.of([5, 6, 7, 8, 9], [-1, -1, 1, 1, 0], [0.4, 0.6, 0.3, 0.7, 1.0])
    chain = main_path(tree)
    assert chain.tokens.tolist() == [6, 8] and chain.parents.tolist() == [-1, 0]
    assert chain.probabilities.tolist() == [0.6, 0.7]
    assert len(main_path(DraftTree.chain([]))) == 0
