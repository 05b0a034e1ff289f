"""Verifiers and tournaments: what noise costs by closed forms, and what each method may look at."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from parallel_decode import BestOfN, Engine, SamplingParams, SelfConsistency
from parallel_decode.engine import Branch, Budget, Steps
from parallel_decode.reasoning import (
    METHODS,
    Cascade,
    ComputeOptimal,
    GenerativeVerifier,
    Knockout,
    LlmJudge,
    PairwiseJudge,
    SelfCertainty,
    Template,
    Verifier,
    likelihood,
    self_certainty,
)
from parallel_decode.reasoning.metrics import auroc, within_question_discrimination
from parallel_decode.reasoning.ranking.difficulty import bin_of, disagreement, low_scores
from parallel_decode.reasoning.ranking.generative_verifier import expected_grade
from parallel_decode.reasoning.ranking.knockout import matches
from parallel_decode.reasoning.ranking.reduction import REDUCTIONS
from parallel_decode.reasoning.vote import tally
from parallel_decode.reasoning.weighting import best_only, by_score
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine

# Every token has a text: what another engine reads is what was written.
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True, allowed_tokens=frozenset(range(len(TEXT))))
SURE = 4.5  # standard errors: one false alarm in a hundred thousand


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)


def first_letter(text: str) -> str | None:
    return text[:1] or None


def whole(text: str) -> str | None:
    return text or None


def concluded(steps: Steps) -> object:
    """The result of a program that asks for nothing."""
    with pytest.raises(StopIteration) as stop:
        next(steps)
    return stop.value.value


# ---- pure functions ----


def test_reductions():
    scores = [0.5, 0.25, 1.0, 0.25]
    given = {name: reduce(scores) for name, reduce in REDUCTIONS.items()}
    assert given == {"min": 0.25, "prod": 0.03125, "last": 0.25, "mean": 0.5}
    assert all(reduce([0.3]) == pytest.approx(0.3) for reduce in REDUCTIONS.values())


def test_auroc_is_the_share_of_pairs_in_order():
    rng = random.Random(0)
    for _ in range(50):
        scores = [float(rng.randrange(5)) for _ in range(12)]
        right = [rng.random() < 0.4 for _ in scores]
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, good in zip(scores, right, strict=True)
            for b, bad in zip(scores, right, strict=True)
            if good and not bad
        ]
        expected = sum(pairs) / len(pairs) if pairs else None
        assert auroc(scores, right) == (None if expected is None else pytest.approx(expected))
    assert within_question_discrimination([[1, 2], [3], [5, 4]], [[0, 1], [1], [0, 1]]) == 0.5
    with pytest.raises(ValueError, match="NaN"):
        auroc([math.nan, 1], [True, False])
    with pytest.raises(ValueError, match="1 scores"):
        auroc([1], [True, False])


def test_difficulties():
    assert disagreement(["a", "a", None, "b"], [1] * 4) == 0.5
    assert disagreement([None], [1]) == 1 and disagreement([], []) == 1
    assert low_scores(["a", "b"], [0.25, 0.75]) == 0.5 and low_scores([], []) == 1
    assert [bin_of(d, (0.2, 0.5)) for d in (0, 0.2, 0.4, 0.5, 1)] == [0, 1, 1, 2, 2]


def test_grades_that_begin_another_one():
    grades = ("1", "2", "10")
    # P(1 then 0) = 0.3 is within P(1) = 0.5.
    rows = [[math.log(0.5)], [math.log(0.1)], [math.log(0.5), math.log(0.6)]]
    assert expected_grade(grades, rows) == pytest.approx((1 * 0.2 + 2 * 0.1 + 3 * 0.3) / 0.6)
    # As one token of its own it is not.
    rows[2] = [math.log(0.3)]
    assert expected_grade(grades, rows) == pytest.approx((1 * 0.5 + 2 * 0.1 + 3 * 0.3) / 0.9)
    assert expected_grade(grades, [[-math.inf]] * 3) == 2.0


def test_templates():
    template = Template("{question} {{x}} {answer}")
    assert template.fill(question="{a}", answer="b") == "{a} {x} b"
    with pytest.raises(ValueError, match="it needs"):
        template.fill(question="a")
    for bad in ("{", "{}", "{a.b}", "{a!r}", "{a:>9}", "{0}"):
        with pytest.raises(ValueError, match=r"template|place"):
            Template(bad)
    with pytest.raises(ValueError, match=r"use one of .*, compare, .*, judge"):
        Template.named("nothing")
    assert set(Template.named("compare").places) == {"question", "first", "second"}


# ---- how good a verifier must be ----


@pytest.mark.parametrize("flip", [0.0, 0.1, 0.25, 0.5])
def test_a_checker_with_noise_gains_what_the_closed_form_says(flip):
    """Best-of-N by an exact checker that errs: from the ceiling, pass@N, down to pass@1."""
    rng = random.Random(1)
    n, rounds = 8, 400
    right = [[rng.random() < rate for _ in range(n)] for rate in (0.1, 0.3, 0.5, 0.8, 0.9)]

    def binomial(k: int, m: int, p: float) -> float:
        return math.comb(m, k) * p**k * (1 - p) ** (m - k)

    for question in right:
        num_right = sum(question)
        expected = sum(
            binomial(good, num_right, 1 - flip)
            * binomial(bad, n - num_right, flip)
            * (good / (good + bad) if good + bad else num_right / n)
            for good in range(num_right + 1)
            for bad in range(n - num_right + 1)
        )
        wins = 0
        for _ in range(rounds):
            scores = [float(ok != (rng.random() < flip)) + 0.5 * rng.random() for ok in question]
            weights = best_only(scores)
            votes = tally([str(i) for i in range(n)], weights)
            wins += question[int(votes[0][0])]
        error = math.sqrt(max(expected * (1 - expected), 1e-9) / rounds)
        assert abs(wins / rounds - expected) <= SURE * error
        if flip == 0:
            assert wins == rounds * any(question)
        if flip == 0.5:
            assert expected == pytest.approx(num_right / n)


def test_shuffled_scores_choose_no_better_than_chance():
    rng = random.Random(2)
    answers = ["a", "a", "a", "b", "b", "c"]
    scores = [0.1, 0.1, 0.1, 0.9, 0.8, 0.2]  # in the right order they say b
    rounds = 4000
    best: Counter[str] = Counter()
    weighted: Counter[str] = Counter()
    for _ in range(rounds):
        dealt = rng.sample(scores, len(scores))
        best[tally(answers, best_only(dealt))[0][0]] += 1
        weighted[tally(answers, by_score(dealt))[0][0]] += 1
    assert tally(answers, by_score(scores))[0][0] == "b"
    for answer in "abc":
        share = answers.count(answer) / len(answers)
        error = math.sqrt(share * (1 - share) / rounds)
        assert abs(best[answer] / rounds - share) < SURE * error
    assert weighted.most_common(1)[0][0] == "a", "the majority's answer"


def test_best_of_n_reaches_the_ceiling_with_an_exact_scorer(engine):
    def exact(branches):
        return [float(branch.text.startswith("z")) for branch in branches]

    questions = [f"question {i}" for i in range(12)]
    method = BestOfN(12, exact, params=PARAMS, extract=first_letter)
    for solution in engine.solve_many(questions, method):
        any_right = any(path.answer == "z" for path in solution.paths)
        assert (solution.answer == "z") == any_right


# ---- knockout ----


@pytest.mark.parametrize("n", range(1, 34))
def test_a_bracket_has_one_match_less_than_contestants(n):
    left, num_matches, num_rounds = list(range(n)), 0, 0
    while len(left) > 1:
        played = matches(left)
        assert sorted(x for m in played for x in m if x is not None) == left
        num_matches += sum(m.second is not None for m in played)
        num_rounds += 1
        left = sorted(random.choice([x for x in m if x is not None]) for m in played)
    assert num_matches == n - 1 and num_rounds == math.ceil(math.log2(n))


def candidates(engine: Engine, n: int) -> list[Branch]:
    kids = engine.fork(engine.prefill("hello"), n)
    engine.extend(kids, PARAMS)
    assert len({kid.text for kid in kids}) == n
    return kids


@pytest.mark.parametrize("skill", [0.5, 0.7, 0.9, 1.0])
def test_a_noisy_comparator_wins_by_the_closed_form(engine, skill):
    """One right answer of 8: it must win three matches."""
    kids, rng, rounds = candidates(engine, 8), random.Random(3), 2000
    wins = 0
    for _ in range(rounds):
        right = rng.choice(kids)

        def compare(pairs, right=right):
            return [
                float((first is right) == (rng.random() < skill))
                if right in (first, second)
                else float(rng.random() < 0.5)
                for first, second in pairs
            ]

        method = Knockout(8, compare, both_orders=False, extract=whole)
        wins += concluded(method._tournament("", kids)).answer == right.text
    expected = skill**3
    assert abs(wins / rounds - expected) <= SURE * math.sqrt(expected * (1 - expected) / rounds)


def test_a_comparator_that_likes_a_place_decides_nothing_in_both_orders(engine):
    kids = candidates(engine, 8)

    def second_place(pairs):
        return [0.0 for _ in pairs]

    def seed_of(method: Knockout) -> int:
        seeds = sorted(kids, key=lambda kid: -kid.mean_logprob)
        answer = concluded(method._tournament("", kids)).answer
        return [seed.text for seed in seeds].index(answer)

    assert seed_of(Knockout(8, second_place, extract=whole)) == 0
    assert seed_of(Knockout(8, second_place, both_orders=False, extract=whole)) != 0


def test_knockout_groups_equal_answers_and_counts_its_matches(engine):
    calls: list[int] = []

    def by_letter(pairs):
        calls.append(len(pairs))
        return [float(first.text < second.text) for first, second in pairs]

    questions = ["one", "two", "three"]
    method = Knockout(12, by_letter, params=PARAMS, extract=first_letter)
    for solution in engine.solve_many(questions, method):
        answers = {path.answer for path in solution.paths}
        assert solution.answer == min(answers)
        assert {answer for answer, _ in solution.votes} == answers
        assert solution.votes[0][0] == solution.answer
    calls.clear()
    solution = engine.solve("four", method)
    num_answers = len({path.answer for path in solution.paths})
    assert sum(calls) == 2 * (num_answers - 1)
    assert len(calls) == math.ceil(math.log2(num_answers))
    assert engine.blocks_in_use == 0


def test_the_models_own_comparison(engine):
    """Against plain scores of the filled-in template, for many questions in one batch."""
    asks = Template("{question}.{first}:{second}=")
    judge = PairwiseJudge(asks, ("a", "b"))
    kids = candidates(engine, 4)
    pairs = [(kids[0], kids[1]), (kids[2], kids[3])]
    given = engine.run_program(judge(pairs), keep=True)
    other = tiny_engine()
    for (first, second), chance in zip(pairs, given, strict=True):
        root = other.prefill(f"hello.{first.text}:{second.text}=")
        a, b = (math.exp(other.score(root, reply)[0][0]) for reply in ("a", "b"))
        assert chance == pytest.approx(a / (a + b))
    elsewhere = replace(judge, engine=tiny_engine())
    assert engine.run_program(elsewhere(pairs), keep=True) == given
    method = Knockout(4, judge, params=PARAMS, extract=whole)
    solutions = engine.solve_many(["hello", "there"], method)
    assert all(s.answer and s.usage.probes == 2 * 2 * 3 for s in solutions)
    engine.prune([kids[0].parent, *kids])
    assert engine.blocks_in_use == 0


# ---- generative verifiers ----


@pytest.mark.parametrize("no", ["", "no"])
def test_a_generative_verifier_gives_the_probability_of_yes(engine, no):
    scorer = GenerativeVerifier(Template("\nright:"), "yes", no)
    kids = candidates(engine, 3)
    tokens = [kid.tokens for kid in kids]
    given = engine.run_program(scorer(kids), keep=True)
    assert [kid.tokens for kid in kids] == tokens
    for kid, value in zip(kids, given, strict=True):
        other = tiny_engine()
        root = other.prefill("hello")
        other.extend(root, tokens=kid.text + "\nright:")
        chances = [
            math.exp(math.fsum(other.score(root, reply)[0])) for reply in ("yes", no) if reply
        ]
        assert value == pytest.approx(chances[0] / (sum(chances) if no else 1))
    elsewhere = replace(scorer, engine=tiny_engine())
    assert engine.run_program(elsewhere(kids), keep=True) == pytest.approx(given)
    assert elsewhere.engine.blocks_in_use == 0
    engine.prune([kids[0].parent, *kids])
    assert engine.blocks_in_use == 0


def test_rationales_are_averaged_and_their_tokens_counted(engine):
    params = SamplingParams(max_tokens=6, temperature=1.0)
    scorer = GenerativeVerifier(
        Template("\nright:"), "y", rationales=4, reason=Template("\nso "), params=params
    )
    seen: list[list[float]] = []

    def recorded(branches):
        scores = yield from scorer(branches)
        seen.append(scores)
        return scores

    solution = engine.solve("hello", BestOfN(3, recorded, params=PARAMS, extract=whole))
    sampled = sum(len(path.tokens) for path in solution.paths)
    assert sampled < solution.usage.generated_tokens <= sampled + 3 * 4 * 6
    assert all(0 < score < 1 for score in seen[0]) and len(set(seen[0])) == 3
    names = [node.name for node in solution.tree.walk()]
    rationales = [node for node in solution.tree.walk() if node.name.count(".") == 1]
    assert len(rationales) == 12 and len(names) == 1 + 3 + 12
    assert engine.blocks_in_use == 0


def test_a_judge_gives_the_expected_grade(engine):
    judge = LlmJudge(Template("\ngrade:"), tuple(str(grade) for grade in range(1, 11)))
    kids = candidates(engine, 2)
    given = engine.run_program(judge(kids), keep=True)
    for kid, grade in zip(kids, given, strict=True):
        other = tiny_engine()
        root = other.prefill("hello")
        other.extend(root, tokens=kid.text + "\ngrade:")
        [digit] = other.fork(root)
        chances = [math.exp(other.score(digit, str(d))[0][0]) for d in range(1, 10)]
        zero = math.exp(other.score(digit, "10")[0][1])
        chances[0], ten = chances[0] * (1 - zero), chances[0] * zero
        total = sum(chances) + ten
        expected = sum(d * c for d, c in enumerate(chances, 1)) + 10 * ten
        assert grade == pytest.approx(expected / total)
    assert all(1 <= grade <= 10 for grade in given)


# ---- methods ----


def test_self_certainty_is_the_mean_of_the_records(engine):
    solution = engine.solve("hello", SelfCertainty(8, 2.0, PARAMS, first_letter))
    ordered = sorted((path.score for path in solution.paths), reverse=True)
    for path in solution.paths:
        assert path.weight == (8 - ordered.index(path.score)) ** 2
    majority = SelfConsistency(8, PARAMS, first_letter)
    assert (
        engine.solve("hello", SelfCertainty(8, 0.0, PARAMS, first_letter)).votes
        == engine.solve("hello", majority).votes
    )
    [kid] = engine.fork(engine.prefill("hello"))
    engine.extend(kid, tokens="ab", logprobs=True)
    engine.extend(kid, SamplingParams(max_tokens=3, ignore_eos=True))
    drawn = [record.self_certainty for record in kid.records[-3:]]
    assert self_certainty([kid]) == [pytest.approx(sum(drawn) / 3)]


def test_a_cascade_shows_the_dear_scorer_only_what_the_cheap_one_kept(engine):
    seen: list[list[Branch]] = []
    held: list[int] = []

    def dear(branches):
        seen.append(list(branches))
        held.append(engine.blocks_in_use)
        return [float(branch.text.count("a")) for branch in branches]

    solution = engine.solve("hello", Cascade(dear, 8, 3, likelihood, params=PARAMS, extract=whole))
    assert len(seen) == 1 and len(seen[0]) == 3 == len(solution.paths)
    scores = sorted((n.logprob for n in solution.tree.children), reverse=True)
    assert sorted((b.mean_logprob for b in seen[0]), reverse=True) == scores[:3]
    assert held[0] <= 2 + 2 * 3, "what the cheap scorer drops is freed at once"
    everything = Cascade(dear, 8, 8, likelihood, params=PARAMS, extract=whole)
    plain = BestOfN(8, dear, params=PARAMS, extract=whole)
    by_text = [
        max(engine.solve("hello", method).votes, key=lambda vote: vote[1])[1]
        for method in (everything, plain)
    ]
    assert by_text[0] == by_text[1]
    assert engine.blocks_in_use == 0


def test_compute_is_spent_by_difficulty_and_the_estimate_is_counted(engine):
    dear = SelfConsistency(9, PARAMS, first_letter)
    method = ComputeOptimal(
        (None, dear), (0.5,), 4, lambda a, s: s[0], params=PARAMS, extract=first_letter
    )
    by_difficulty = {}
    for difficulty in (0.2, 0.7):
        scored = replace(method, scorer=lambda b, d=difficulty: [d] * len(b))
        by_difficulty[difficulty] = engine.solve("hello", scored)
    assert len(by_difficulty[0.2].paths) == 4 and len(by_difficulty[0.7].paths) == 9
    assert by_difficulty[0.2].usage.generated_tokens == 4 * 12
    assert by_difficulty[0.7].usage.generated_tokens == (4 + 9) * 12
    assert by_difficulty[0.7].votes == engine.solve("hello", dear).votes
    assert engine.blocks_in_use == 0


def broken(branches):
    raise RuntimeError("no")


BAD_SCORERS = {
    "raises": (broken, "no"),
    "NaN": (lambda b: [math.nan] * len(b), "gave nan"),
    "too few": (lambda b: [1.0] * (len(b) - 1), "scores for"),
}


LIMITS = [Budget(tokens=0), Budget(tokens=1), Budget(tokens=20), Budget(steps=0), Budget(steps=3)]


@pytest.mark.parametrize("budget", LIMITS, ids=str)
@pytest.mark.parametrize(
    "method",
    [
        BestOfN(3, likelihood, params=PARAMS, extract=whole),
        BestOfN(3, LlmJudge(), params=PARAMS, extract=whole),
        BestOfN(3, GenerativeVerifier(rationales=2), params=PARAMS, extract=whole),
        Cascade(likelihood, 3, 2, params=PARAMS, extract=whole),
        Knockout(3, PairwiseJudge(), params=PARAMS, extract=whole),
        SelfCertainty(3, params=PARAMS, extract=whole),
        ComputeOptimal((None,), (), 3, params=PARAMS, extract=whole),
    ],
    ids=["best-of-n", "judge", "rationales", "cascade", "knockout", "certainty", "optimal"],
)
def test_a_budget_ends_every_method(engine, method, budget):
    solution = engine.solve("hello", method, budget=budget)
    if budget.tokens is not None:
        assert solution.usage.generated_tokens <= budget.tokens
    assert solution.paths and engine.blocks_in_use == 0
    assert any("budget" in warning for warning in solution.warnings)


@pytest.mark.parametrize("name", BAD_SCORERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda scorer: Cascade(scorer, 3, 2, params=PARAMS, extract=whole),
        lambda scorer: Cascade(likelihood, 3, 2, scorer, params=PARAMS, extract=whole),
        lambda scorer: Knockout(
            3, lambda p: [0.5] * len(p), scorer=scorer, params=PARAMS, extract=whole
        ),
        lambda scorer: ComputeOptimal((None,), (), 3, scorer=scorer, params=PARAMS, extract=whole),
    ],
    ids=["cascade", "cascade, cheap", "knockout", "compute-optimal"],
)
def test_a_bad_scorer_fails_its_question_only(engine, make, name):
    scorer, message = BAD_SCORERS[name]

    def at_times(branches):
        return (
            scorer(branches) if branches[0].text_before_output == "bad" else [1.0] * len(branches)
        )

    good, bad = engine.solve_many(["good", "bad"], make(at_times))
    assert good.answer is not None
    assert isinstance(bad, (ValueError, RuntimeError)) and message in str(bad)
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        (lambda pairs: [1.5] * len(pairs), "no probability"),
        (lambda pairs: [math.nan] * len(pairs), "no probability"),
        (lambda pairs: [0.5], "1 results for"),
        (broken, "no"),
    ],
)
def test_a_bad_comparator_fails_its_question_only(engine, compare, message):
    method = Knockout(4, compare, params=PARAMS, extract=whole)
    [failed] = engine.solve_many(["hello"], method)
    assert message in str(failed) and engine.blocks_in_use == 0
    assert engine.solve("hello", replace(method, comparator=lambda p: [1.0] * len(p))).answer


def test_no_answer_at_all(engine):
    def nothing(text):
        return None

    for method in (
        Knockout(3, lambda p: [0.5] * len(p), params=PARAMS, extract=nothing),
        Cascade(likelihood, 3, 2, params=PARAMS, extract=nothing),
        SelfCertainty(3, params=PARAMS, extract=nothing),
        ComputeOptimal((None, SelfCertainty(2, params=PARAMS)), (1.0,), 3, params=PARAMS),
    ):
        solution = engine.solve("hello", method)
        assert engine.blocks_in_use == 0
        if method.extract is nothing:
            assert solution.answer is None and solution.votes == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cascade(likelihood, keep=0), "keep must be"),
        (lambda: Cascade(likelihood, 0), "n must be"),
        (lambda: Knockout(0), "n must be"),
        (lambda: SelfCertainty(power=-1), "power must be"),
        (lambda: ComputeOptimal((), ()), "0 methods"),
        (lambda: ComputeOptimal((None,), (0.5,)), "1 methods and 1 bounds"),
        (lambda: ComputeOptimal((None, None, None), (0.5, 0.2)), "must ascend"),
        (lambda: GenerativeVerifier(yes=""), "yes must not"),
        (lambda: GenerativeVerifier(rationales=-1), "rationales must not"),
        (lambda: GenerativeVerifier(Template("{x}")), "the template has places"),
        (lambda: LlmJudge(grades=("1",)), "grades must be"),
        (lambda: PairwiseJudge(Template("x")), "the template has places"),
        (lambda: PairwiseJudge(replies=("A", "A")), "two different texts"),
        (lambda: Verifier(torch.sum, statistics=True), "statistics need a step"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_ranking_method_is_listed():
    listed = {method.card.name for method in METHODS if method.card.family == "ranking"}
    assert listed == {"best-of-n", "cascade", "compute-optimal", "knockout", "self-certainty"}
