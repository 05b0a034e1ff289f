"""Generative synthesis: planted synthesisers, controls, bounds, and two models in one process."""

import dataclasses
import math
import random
import re
from collections import Counter

import pytest

from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.reasoning import (
    A2R,
    METHODS,
    SSA,
    Author,
    GenerativeSelfAggregation,
    PaCoRe,
    Quotation,
    RecursiveSelfAggregation,
    Template,
)
from parallel_decode.reasoning.metrics import selection
from parallel_decode.reasoning.synthesis import last_paragraph
from parallel_decode.reasoning.vote import tally
from tests.scripted_author import Scripted, in_turn
from tests.tiny_model import tiny_checkpoint, tiny_engine

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
MODEL = Author(PARAMS)
SHOWN = Quotation(Template("\nread:{texts}\nnow: "), Template("\n{number}= {text}"))
QUESTIONS = ["hello", "one and two", "3 + 4 = "]


def first_letter(text: str) -> str | None:
    return text[:1] or None


def settings(**more):
    return {"shown": SHOWN, "extract": first_letter, **more}


def other() -> Engine:
    return tiny_engine(tiny_checkpoint(seed=1), kv_tokens=1 << 14)


def methods() -> dict:
    return {
        "ssa": SSA(n=3, explorer=MODEL, synthesiser=MODEL, **settings(orders=2)),
        "a2r": A2R(explorer=Author(PARAMS, other()), synthesiser=MODEL, **settings()),
        "a2r, the other way": A2R(
            explorer=MODEL, synthesiser=Author(PARAMS, other()), **settings(orders=2)
        ),
        "gsa": GenerativeSelfAggregation(explorer=MODEL, synthesiser=MODEL, **settings()),
        "rsa": RecursiveSelfAggregation(4, 2, 3, author=MODEL, **settings()),
        "pacore": PaCoRe((4, 2), MODEL, bound=5, **settings()),
    }


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(kv_tokens=1 << 14)


def texts(solution) -> list[str]:
    return [path.text for path in solution.paths]


def candidates_in(shown: str) -> list[str]:
    """The texts that SHOWN quotes."""
    return re.findall(r"\n\d+= (.*)", shown)


# ---- all of them ----


@pytest.mark.parametrize("name", methods())
def test_questions_in_one_batch_give_what_each_gives_alone(engine, name):
    method = methods()[name]
    together = engine.solve_many(QUESTIONS, method, seed=5)
    assert engine.blocks_in_use == 0
    for question, solution in zip(QUESTIONS, together, strict=True):
        small = tiny_engine(kv_tokens=1 << 14, max_batch_tokens=16)
        alone = small.solve(question, methods()[name], seed=5)
        assert texts(alone) == texts(solution)
        assert alone.answer == solution.answer
        for figure in ("generated_tokens", "prompt_tokens", "delegated_tokens"):
            assert getattr(alone.usage, figure) == getattr(solution.usage, figure), figure
        assert small.blocks_in_use == 0


@pytest.mark.parametrize("name", methods())
def test_every_token_of_both_models_is_counted(engine, name):
    method = methods()[name]
    counted = []
    engine.observe(lambda stats: counted.append(stats.num_tokens))
    solution = engine.solve("hello", method)
    assert solution.usage.computed_tokens == sum(counted)
    authors = [getattr(method, field, None) for field in ("explorer", "synthesiser")]
    elsewhere = [author.engine for author in authors if author and author.engine]
    assert solution.usage.delegated_tokens == sum(e.usage.computed_tokens for e in elsewhere)
    assert all(e.usage.computed_tokens and not e.blocks_in_use for e in elsewhere)


@pytest.mark.parametrize("name", methods())
def test_an_extractor_that_raises_ends_one_question(engine, name):
    calls = []

    def raises(text):
        calls.append(text)
        if len(calls) == 1:
            raise RuntimeError("no answer here")
        return "x"

    method = dataclasses.replace(methods()[name], extract=raises)
    programs = [engine.submit(method.program(question)) for question in QUESTIONS]
    engine.wait(programs)
    errors = [program.error for program in programs]
    assert sum(error is not None for error in errors) == 1
    assert engine.blocks_in_use == 0


def test_their_names_are_in_the_list():
    names = {method.card.name for method in METHODS}
    wanted = {"ssa", "a2r", "generative-self-aggregation", "recursive-self-aggregation", "pacore"}
    assert wanted <= names


def test_bad_parameters():
    cases = [
        (lambda: SSA(n=0), "n must be at least 1, got 0"),
        (lambda: SSA(orders=0), "orders must be at least 1, got 0"),
        (lambda: A2R(shown=Quotation(Template("nothing"))), "texts"),
        (lambda: RecursiveSelfAggregation(0), "population must be at least 1, got 0"),
        (lambda: RecursiveSelfAggregation(subset=0), "subset must be at least 1, got 0"),
        (lambda: RecursiveSelfAggregation(rounds=-1), "rounds must be at least 0, got -1"),
        (lambda: RecursiveSelfAggregation(final="best"), "got 'best'"),
        (lambda: PaCoRe(()), "widths must be at least 1"),
        (lambda: PaCoRe((4, 0)), "widths must be at least 1"),
        (lambda: PaCoRe(bound=0), "bound must be at least 1, got 0"),
        (lambda: Author(prompt=Template("none")), "question"),
        (lambda: Quotation(Template("{texts}"), Template("{text}")), "number"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


# ---- what explorers write, and who reads it ----


def test_candidates_are_the_samples_of_self_consistency(engine):
    seen = []
    synthesiser = Scripted(says=lambda shown: seen.append(shown) or "x")
    method = SSA(n=4, explorer=MODEL, synthesiser=synthesiser, **settings())
    engine.solve("hello", method, seed=3)
    samples = engine.solve("hello", SelfConsistency(4, PARAMS, first_letter), seed=3)
    [shown] = seen
    for path in samples.paths:
        assert f"= {path.text.strip()}\n" in shown


def test_the_seed_puts_every_candidate_everywhere(engine):
    """Of 240 orders each candidate leads in a third; five standard deviations."""
    leads = Counter()
    synthesiser = Scripted(says=lambda shown: leads.update(candidates_in(shown)[:1]) or "x")
    method = SSA(3, in_turn("a", "b", "c"), synthesiser, **settings())
    for seed in range(240):
        engine.solve("hello", method, seed=seed)
    bound = 5 * math.sqrt(240 * (1 / 3) * (2 / 3))
    assert set(leads) == set("abc")
    assert all(abs(count - 80) < bound for count in leads.values())


PERFECT = Scripted(says=lambda shown: "r" if "r" in candidates_in(shown) else "w")


def _vote(shown: str) -> str:
    # Equal counts: the first letter, so that the order does not matter.
    return min(Counter(candidates_in(shown)).items(), key=lambda item: (-item[1], item[0]))[0]


VOTING = Scripted(says=_vote)


def test_a_perfect_synthesiser_saves_what_a_vote_loses_and_a_copying_one_falls_to_the_vote(engine):
    rng = random.Random(4)
    pools = [rng.choices("rw", weights=[1, 3], k=5) for _ in range(60)]
    votes = [tally(pool, [1.0] * 5)[0][0] == "r" for pool in pools]
    possible = ["r" in pool for pool in pools]
    right = {}
    for name, synthesiser in (("perfect", PERFECT), ("voting", VOTING)):
        right[name] = [
            engine.solve("hello", SSA(5, in_turn(*pool), synthesiser, **settings())).answer == "r"
            for pool in pools
        ]
    lost = [may and not vote for may, vote in zip(possible, votes, strict=True)]
    assert 10 < sum(lost) < 60
    assert all(r for r, wrong in zip(right["perfect"], lost, strict=True) if wrong)
    assert right["voting"] == votes
    perfect = selection(right["perfect"], votes, possible)
    assert perfect.harm == 0 and perfect.super_oracle == 0
    assert perfect.rescue == sum(lost) / (len(votes) - sum(votes))
    voting = selection(right["voting"], votes, possible)
    assert voting.harm == voting.rescue == 0


@pytest.mark.parametrize("synthesiser", [PERFECT, VOTING])
def test_who_does_not_look_at_the_order_is_invariant_under_it(engine, synthesiser):
    method = SSA(5, in_turn(*"rrwww"), synthesiser, **settings(orders=8))
    solution = engine.solve("hello", method)
    assert len(solution.votes) == 1
    assert not any("orders" in warning for warning in solution.warnings)


def test_who_copies_the_first_is_told_of(engine):
    copying = Scripted(says=lambda shown: candidates_in(shown)[0])
    method = SSA(3, in_turn("r one", "w two", "v six"), copying, **settings(orders=8))
    solution = engine.solve("hello", method)
    assert len(solution.votes) > 1
    assert any("orders" in warning for warning in solution.warnings)
    assert any("the one shown first" in warning for warning in solution.warnings)


def test_strangers_take_the_place_of_the_candidates(engine):
    method = SSA(3, in_turn(*"rrr"), PERFECT, **settings(strangers=("v", "w")))
    assert engine.solve("hello", method).answer == "w"
    assert engine.solve("hello", dataclasses.replace(method, strangers=())).answer == "r"


def test_failed_explorers_are_not_shown_and_told_of(engine):
    method = SSA(3, in_turn("r", None, "r"), VOTING, **settings())
    solution = engine.solve("hello", method)
    assert solution.answer == "r"
    assert "1 of 3 replies of round 1 failed: planted" in solution.warnings
    nobody = engine.solve("hello", SSA(2, in_turn(None), VOTING, **settings()))
    assert nobody.answer is None
    assert [path.error for path in nobody.paths] == ["planted", "planted"]


def test_candidates_that_do_not_fit_are_a_warning():
    engine = tiny_engine(max_seq_len=40)
    solution = engine.solve("hello", SSA(4, MODEL, MODEL, **settings()))
    assert solution.answer is None
    assert any("over the context of 40" in warning for warning in solution.warnings)
    assert engine.blocks_in_use == 0


def test_an_engine_without_room_is_a_warning(engine):
    small = Engine(tiny_checkpoint(seed=1), threads=1, kv_tokens=16)
    method = A2R(explorer=Author(PARAMS, small), synthesiser=MODEL, **settings())
    solution = engine.solve("hello and good day to you all", method)
    assert any("4 of 4 replies of round 1 failed" in warning for warning in solution.warnings)
    assert small.blocks_in_use == engine.blocks_in_use == 0


def test_an_author_of_the_engine_itself_is_an_error(engine):
    method = A2R(explorer=Author(PARAMS, engine), synthesiser=MODEL, **settings())
    with pytest.raises(ValueError, match="the engine waits for this program"):
        engine.solve("hello", method)


def test_equal_prompts_to_another_engine_are_answered_apart(engine):
    author = Author(PARAMS, other())
    method = SSA(4, author, Scripted(says=lambda shown: shown), **settings())
    [path] = engine.solve("hello", method).paths
    assert len(set(candidates_in(path.text))) == 4


# ---- recursive ----


def test_without_rounds_it_is_self_consistency(engine):
    method = RecursiveSelfAggregation(5, 2, 0, author=MODEL, **settings())
    solution = engine.solve("hello", method, seed=2)
    expected = engine.solve("hello", SelfConsistency(5, PARAMS, first_letter), seed=2)
    assert texts(solution) == texts(expected)
    assert solution.votes == expected.votes


def test_every_round_reads_subsets_of_the_one_before(engine):
    names = iter("abcdefghijklmnop")
    read = []

    def says(shown):
        read.append(candidates_in(shown))
        return next(names)

    method = RecursiveSelfAggregation(4, 2, 3, author=Scripted(says=says), **settings())
    engine.solve("hello", method)
    assert read[:4] == [[]] * 4
    for number, before in enumerate(["abcd", "efgh", "ijkl"], 1):
        for subset in read[4 * number : 4 * number + 4]:
            assert len(set(subset)) == 2 and set(subset) < set(before)


def test_what_a_perfect_aggregator_finds_spreads_as_the_subsets_say(engine):
    """One of six is right: a subset of two holds it with 1/3; five standard deviations."""
    hits = []
    for seed in range(60):
        first = iter("rwwwww")
        author = Scripted(
            says=lambda shown, first=first: PERFECT.says(shown) if "read" in shown else next(first)
        )
        method = RecursiveSelfAggregation(6, 2, 1, author=author, **settings())
        hits += [answer == "r" for answer in _answers(engine.solve("hello", method, seed=seed))]
    assert abs(sum(hits) - 120) < 5 * math.sqrt(360 * (1 / 3) * (2 / 3))


def _answers(solution) -> list[str | None]:
    return [path.answer for path in solution.paths]


def test_the_end_may_be_any_of_the_last(engine):
    found = Counter()
    for seed in range(60):
        method = RecursiveSelfAggregation(
            3, 1, 0, "random", in_turn(*"aab"), shown=SHOWN, extract=first_letter
        )
        found[engine.solve("hello", method, seed=seed).answer] += 1
    assert set(found) == {"a", "b"} and 25 < found["a"] < 55


def test_a_population_that_agrees_is_told_of(engine):
    def warned(author):
        method = RecursiveSelfAggregation(4, 2, 3, author=author, **settings())
        warnings = engine.solve("hello", method).warnings
        return [warning for warning in warnings if "diversity" in warning]

    assert warned(Scripted(says=lambda shown: "r")) != []
    assert warned(in_turn(*"abcd")) == []


# ---- PaCoRe ----


def test_a_message_that_never_ends_is_cut_and_the_others_go_on(engine):
    solution = engine.solve("hello", PaCoRe((3,), MODEL, bound=4, **settings()), seed=1)
    whole = engine.solve("hello", PaCoRe((3,), MODEL, bound=99, **settings()), seed=1)
    [cut], [full] = solution.paths, whole.paths
    short, long = candidates_in(cut.text), candidates_in(full.text)
    assert all(0 < len(text) <= 4 for text in short)
    assert max(map(len, long)) > 4
    assert any(text.endswith(tail) for text in long for tail in short)


def test_rounds_of_pacore(engine):
    read = []
    names = iter("abcdefghij")

    def says(shown):
        read.append(sorted(candidates_in(shown)))
        return f"thoughts\n\n{next(names)}"

    method = PaCoRe((3, 2), Scripted(says=says), **settings(extract=lambda text: text[-1]))
    assert engine.solve("hello", method).answer == "f"
    assert read == [[]] * 3 + [["a", "b", "c"]] * 2 + [["d", "e"]]


def test_the_last_paragraph():
    assert last_paragraph("one\n\ntwo\nthree\n\n") == "two\nthree"
    assert last_paragraph("one") == "one"
