"""The collapse detector: each kind of collapse is planted, and found; none where there is none."""

import math
import random

import pytest

from parallel_decode.reasoning.metrics import Synthesis, aggregation_collapse

WORDS = ["alpha", "beta", "gamma", "delta", "kappa", "sigma", "omega", "theta"]


def text(rng: random.Random, answer: str) -> str:
    return " ".join(rng.choices(WORDS, k=12)) + f" = {answer}"


def syntheses(made, count: int = 40, answers: str = "bba"):
    """`made(rng, texts, answers)` -> (text, answer) of each synthesis, for shuffled candidates."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        given = rng.sample(answers, len(answers))
        texts = [text(rng, answer) for answer in given]
        rows.append(Synthesis(*made(rng, texts, given), texts, given))
    return rows


def reasons(rng, texts, answers):
    """Takes the minority as often as not."""
    answer = rng.choice("ab")
    return text(rng, answer), answer


def test_one_that_reasons_raises_no_warning():
    collapse = aggregation_collapse(syntheses(reasons))
    assert collapse.warnings == []
    assert collapse.num_syntheses == collapse.num_contested == 40
    assert collapse.copies == collapse.new_answers == 0
    assert 0.3 < collapse.majority_share < 0.7
    assert math.isnan(collapse.flips) and math.isnan(collapse.first_copied)


@pytest.mark.parametrize(
    ("made", "field", "value", "words"),
    [
        (lambda rng, t, a: (text(rng, "b"), "b"), "majority_share", 1.0, "majority's answer"),
        (lambda rng, t, a: (t[0], a[0]), "first_copied", 1.0, "copy a candidate, the one shown"),
        (lambda rng, t, a: (t[-1], a[-1]), "copies", 1.0, "100% of the syntheses copy a candidate"),
        (lambda rng, t, a: (text(rng, "z"), "z"), "new_answers", 1.0, "no candidate gave"),
        (lambda rng, t, a: (a[-1], a[-1]), "copies", 0.0, "of a candidate's length"),
    ],
    ids=["majority", "first", "one", "ignores", "short"],
)
def test_planted_collapse_is_found(made, field, value, words):
    collapse = aggregation_collapse(syntheses(made))
    assert getattr(collapse, field) == value
    assert any(words in warning for warning in collapse.warnings)


def test_a_copy_of_another_than_the_first_is_not_said_to_be_of_the_first():
    collapse = aggregation_collapse(syntheses(lambda rng, t, a: (t[-1], a[-1])))
    assert collapse.first_copied == 0
    assert not any("shown first" in warning for warning in collapse.warnings)


def test_few_syntheses_do_not_prove_a_vote():
    voted = syntheses(lambda rng, t, a: (text(rng, "b"), "b"), count=19)
    collapse = aggregation_collapse(voted)
    assert collapse.majority_share == 1
    assert collapse.warnings == []


def test_order_effects_are_pairs_over_the_same_candidates():
    texts, answers = ["one one", "two two", "six six"], ["1", "2", "6"]

    def of(order, answer):
        return Synthesis("so", answer, [texts[i] for i in order], [answers[i] for i in order])

    same = [of((0, 1, 2), "1"), of((1, 0, 2), "1"), of((2, 1, 0), "1")]
    assert aggregation_collapse(same).flips == 0
    # Of three pairs two differ; one in the same order as another is no pair.
    turned = [*same[:2], of((2, 1, 0), "6")]
    assert aggregation_collapse(turned).flips == pytest.approx(2 / 3)
    assert any("orders" in warning for warning in aggregation_collapse(turned).warnings)
    assert math.isnan(aggregation_collapse([same[0], of((0, 1, 2), "6")]).flips)


def test_a_tie_and_agreement_are_not_contested():
    for answers in ("ab", "aa", "aabb"):
        made = syntheses(reasons, count=1, answers=answers)
        assert aggregation_collapse(made).num_contested == 0


@pytest.mark.parametrize("rows", [[], [Synthesis("a", "a", [], [])]])
def test_nothing_to_look_at(rows):
    with pytest.raises(ValueError, match="at least one candidate"):
        aggregation_collapse(rows)
