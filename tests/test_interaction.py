"""Methods in which branches see, tell or leave each other: what arrives, and the controls."""

import dataclasses
import itertools
import math
import random
from collections import Counter
from random import Random

import pytest

from parallel_decode import Branch, Engine, SamplingParams, SelfConsistency
from parallel_decode.engine import Broadcast, Extend, Fork, Prefill, See, View
from parallel_decode.reasoning import (
    METHODS,
    SEAT,
    EntropyBranching,
    GroupThink,
    Hogwild,
    LeaP,
    Template,
)
from parallel_decode.reasoning.interaction import (
    at_random,
    clustered,
    dispersed,
    hybrid,
    low_entropy,
    secretary,
    semantic_entropy,
)
from parallel_decode.reasoning.interaction.entropy_branching import most_uncertain
from parallel_decode.reasoning.interaction.routing import check_route
from parallel_decode.tasks import TASKS
from tests.tiny_model import tiny_checkpoint

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
SUMMARY = SamplingParams(max_tokens=5, ignore_eos=True)
QUESTIONS = ["hello", "one and two", "3 + 4 = "]
NAMES = ("a", "b", "c")


def first_letter(text: str) -> str | None:
    return text[:1] or None


def leap(**settings) -> LeaP:
    texts = {
        "ask": Template("\nso far: "),
        "quote": Template("\npeer {number}= {text}."),
        "comment": Template("\nheard:{summaries}\n"),
    }
    base = {"n": 3, "turns": 3, "summary": SUMMARY, "params": PARAMS, "extract": first_letter}
    return LeaP(**{**texts, **base, **settings})


def hogwild(**settings) -> Hogwild:
    base = {
        "names": NAMES,
        "turns": 2,
        "lead": Template("\n{name}: "),
        "check": Template("\nredundant: "),
        "params": PARAMS,
        "extract": first_letter,
    }
    return Hogwild(**{**base, **settings})


def group_think(**settings) -> GroupThink:
    base = {"names": NAMES, "lead": Template("\n{name}: "), "span": 40, "params": PARAMS}
    return GroupThink(**{**base, "extract": first_letter, **settings})


def seat(**settings) -> SEAT:
    texts = {"attempt": Template("\ntry {number}= {text}"), "again": Template("\nnow: ")}
    return SEAT(**{**texts, "params": PARAMS, "extract": first_letter, **settings})


def branching(**settings) -> EntropyBranching:
    base = {"threshold": 0.5, "every": 4, "params": PARAMS, "extract": first_letter}
    return EntropyBranching(**{**base, **settings})


ALL = {
    "leap": leap(),
    "leap at random": leap(route=at_random),
    "hogwild": hogwild(),
    "group think": group_think(),
    "seat": seat(stop=low_entropy(0.0)),
    "branching": branching(n=2),
}


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)


def texts(solution) -> list[str]:
    return [path.text for path in solution.paths]


# ---- all of them ----


@pytest.mark.parametrize("name", ALL)
def test_questions_in_one_batch_give_what_each_gives_alone(engine, name):
    method = ALL[name]
    together = engine.solve_many(QUESTIONS, method, seed=5)
    assert engine.blocks_in_use == 0
    small = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14, max_batch_tokens=16)
    for question, solution in zip(QUESTIONS, together, strict=True):
        alone = small.solve(question, method, seed=5)
        assert texts(alone) == texts(solution)
        assert alone.answer == solution.answer
        sampled = {"generated_tokens", "prompt_tokens", "computed_tokens"}
        for figure in sampled:
            assert getattr(alone.usage, figure) == getattr(solution.usage, figure), figure
    assert small.blocks_in_use == 0


@pytest.mark.parametrize("name", ALL)
def test_every_sampled_token_is_counted(engine, name):
    counted = 0

    def count(stats):
        nonlocal counted
        counted += stats.num_tokens

    stop = engine.observe(count)
    solution = engine.solve("hello", ALL[name])
    stop()
    assert solution.usage.computed_tokens == counted
    assert engine.usage.generated_tokens == solution.usage.generated_tokens > 0


@pytest.mark.parametrize("name", ALL)
def test_an_extractor_that_raises_ends_one_question(engine, name):
    def raises(text):
        if raises.calls == 0:
            raises.calls += 1
            raise RuntimeError("no answer here")
        return "x"

    raises.calls = 0
    method = dataclasses.replace(ALL[name], extract=raises)
    programs = [engine.submit(method.program(question)) for question in QUESTIONS]
    engine.wait(programs)
    errors = [program.error for program in programs]
    assert sum(error is not None for error in errors) == 1
    assert any("no answer here" in str(error) for error in errors)
    assert engine.blocks_in_use == 0


def test_their_names_are_in_the_list():
    names = {method.card.name for method in METHODS}
    assert {"leap", "hogwild", "group-think", "seat", "entropy-branching"} <= names


def test_bad_parameters():
    cases = [
        (lambda: leap(n=0), "n must be at least 1"),
        (lambda: leap(turns=0), "turns must be at least 1"),
        (lambda: leap(peers=-1), "peers must not be negative"),
        (lambda: leap(comment=Template("nothing")), "summaries"),
        (lambda: hogwild(names=()), "at least one worker"),
        (lambda: hogwild(turns=0), "turns must be at least 1"),
        (lambda: hogwild(check=Template("{x}")), "places"),
        (lambda: group_think(span=12), "span must be more than max_tokens=12"),
        (lambda: seat(rounds=0), "rounds must be at least 1"),
        (lambda: seat(stop=low_entropy(-1)), "must not be negative"),
        (lambda: branching(fan=0), "fan must be at least 1"),
        (lambda: branching(n=4, width=3), "width must be at least n=4"),
        (lambda: branching(threshold=math.nan), "threshold"),
        (lambda: branching(every=0), "must be at least 1"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


# ---- routing ----


def test_routes_of_known_texts():
    said = ["aaaa", "aaab", "aabb", "zzzz"]
    rng = random.Random(0)
    assert clustered(said, 1, rng) == [[1], [0], [1], [0]]
    assert dispersed(said, 1, rng) == [[3], [3], [3], [2]]
    assert clustered(said, 2, rng)[0] == [1, 2]
    assert dispersed(said, 2, rng)[0] == [3, 2]
    assert hybrid(said, 2, rng)[0] == [1, 3]
    assert hybrid(said, 3, rng)[0] == [1, 3, 2]


@pytest.mark.parametrize("route", [dispersed, clustered, hybrid, at_random])
def test_a_route_holds_others_only_and_nobody_twice(route):
    rng = random.Random(1)
    for number in range(1, 7):
        said = ["".join(rng.choices("abc", k=rng.randint(0, 6))) for _ in range(number)]
        for count in range(number):
            peers = route(said, count, rng)
            check_route(peers, number)
            assert all(len(row) == count for row in peers)


def test_random_routes_are_uniform():
    """Each of 6 pairs has 1/6; five standard deviations."""
    rng = random.Random(2)
    draws = 3000
    seen = Counter(tuple(sorted(at_random(["x"] * 5, 2, rng)[0])) for _ in range(draws))
    assert len(seen) == 6
    bound = 5 * math.sqrt(draws * (1 / 6) * (5 / 6))
    assert all(abs(count - draws / 6) < bound for count in seen.values())


@pytest.mark.parametrize("route", [[[1]], [[0], [0]], [[1, 1], [0]], [[2], [0]]])
def test_a_bad_route_is_an_error_of_its_question(engine, route):
    method = leap(n=2, route=lambda said, count, rng: route)
    with pytest.raises(ValueError, match=r"can't hear|the route has"):
        engine.solve("hello", method)
    assert engine.blocks_in_use == 0


# ---- LeaP ----


def test_one_turn_is_self_consistency(engine):
    solution = engine.solve("hello", leap(turns=1), seed=3)
    expected = engine.solve("hello", SelfConsistency(3, PARAMS, first_letter), seed=3)
    assert texts(solution) == texts(expected)
    assert solution.usage.generated_tokens == expected.usage.generated_tokens


def test_what_a_path_wrote_is_read_by_whom_the_route_says(engine):
    routes = []

    def around(said, count, rng):
        routes.append(list(said))
        return [[(i + 1) % len(said)] for i in range(len(said))]

    solution = engine.solve("hello", leap(turns=2, route=around), seed=1)
    [said] = routes
    assert len(set(said)) > 1
    for number, path in enumerate(solution.paths):
        own, heard = path.text.split("\nheard:")
        assert own.split("\nso far: ")[1].strip() == said[number]
        assert heard.startswith(f"\npeer 1= {said[(number + 1) % 3]}.\n")
    # A turn, a summary and a turn of each path.
    assert solution.usage.generated_tokens == 3 * (12 + 5 + 12)


def test_controls_of_leap(engine):
    strangers = ("one", "two")
    for path in engine.solve("hello", leap(turns=2, strangers=strangers)).paths:
        assert all(f"= {text}." in path.text for text in strangers)
    nobody = engine.solve("hello", leap(turns=2, peers=0))
    assert all("heard:\n" in path.text for path in nobody.paths)
    heard = engine.solve("hello", leap(turns=2))
    cut = [path.text.split("heard:")[0] for path in nobody.paths]
    assert cut == [path.text.split("heard:")[0] for path in heard.paths]


def test_paths_without_room_for_a_message_stay_as_they_are():
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14, max_seq_len=40)
    solution = engine.solve("hello", leap(turns=4))
    assert all(len(path.tokens) + 6 <= 40 for path in solution.paths)
    assert engine.blocks_in_use == 0


# ---- workers ----


@pytest.mark.parametrize("method", [hogwild, group_think])
def test_without_sight_workers_are_independent_branches(engine, method):
    made = method(visible=False)
    solution = engine.solve("hello", made, seed=2)

    def program():
        root = yield Prefill("hello")
        if isinstance(made, GroupThink):
            kids = yield Fork(root, 3, positions="disjoint_ranges", lengths=[40])
        else:
            kids = yield Fork(root, 3)
        for kid, name in zip(kids, NAMES, strict=True):
            yield Broadcast([kid], f"\n{name}: ")
        yield Extend(kids, PARAMS)
        if isinstance(made, Hogwild):
            yield Extend(kids, PARAMS, tokens="\nredundant: ")
        return [kid.text for kid in kids]

    assert texts(solution) == engine.run_program(program(), seed=2)
    seeing = engine.solve("hello", method(), seed=2)
    assert all(a != b for a, b in zip(texts(seeing), texts(solution), strict=True))


@pytest.mark.parametrize("method", [hogwild, group_think])
def test_a_stranger_is_seen_in_place_of_the_others(engine, method):
    one, two, peers = (
        engine.solve("hello", method(stranger=stranger), seed=2)
        for stranger in ("3 + 4 = ", "and so on", None)
    )
    assert len(one.paths) == len(peers.paths) == 3
    assert texts(one) != texts(two) != texts(peers) != texts(one)
    assert one.question.endswith("hello")
    # The stranger's workers are paid for, too.
    assert one.usage.generated_tokens == 2 * peers.usage.generated_tokens


def test_ranges_that_are_too_small():
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14, max_seq_len=100)
    with pytest.raises(ValueError, match="need a span of 16, not 14"):
        engine.solve("hello", group_think(span=14))
    with pytest.raises(ValueError, match="over the context of 100"):
        engine.solve("hello", group_think())
    assert engine.blocks_in_use == 0


def chain_problems(count: int):
    chain, rng = TASKS["chain"], Random(7)
    return chain, [chain.generate(rng, 2) for _ in range(count)]


def asked_by_sight(engine: Engine, questions, visible: bool) -> list[Branch]:
    """Each worker holds no more than the last character of its question; the rest is in the branch
    of another, which it sees or does not see."""

    def program(question):
        asker = yield Prefill(question[:-1])
        [worker] = yield Fork(asker, at=1)
        if visible:
            yield See(worker, [View(asker, 1)])
        yield Extend([worker], SamplingParams(temperature=0, max_tokens=60), tokens=question[-1])
        return worker.own_text

    programs = [engine.submit(program(question)) for question in questions]
    engine.wait(programs)
    return [program.result for program in programs]


def test_a_value_that_another_branch_holds_is_used_and_lost_with_sight():
    """A worker that sees the question in another's keys says what it says with the question in its
    own text; with sight cut it is right no more often than chance."""
    engine = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 14)
    chain, problems = chain_problems(24)
    questions = [problem.question for problem in problems]
    roots = [engine.prefill(question) for question in questions]
    engine.extend(roots, SamplingParams(temperature=0, max_tokens=60))
    seen = asked_by_sight(engine, questions, True)
    blind = asked_by_sight(engine, questions, False)
    assert [text[1:] for text in seen] == [root.text for root in roots]

    def right(said):
        return sum(chain.check(p, text[1:]) for p, text in zip(problems, said, strict=True))

    assert right(seen) >= 18
    # Blind, all workers say the same, whatever they are asked.
    assert len(set(blind)) == 1
    assert right(blind) <= 5


# ---- entropy ----


def test_above_every_entropy_it_is_self_consistency(engine):
    solution = engine.solve("hello", branching(n=3, threshold=math.inf), seed=4)
    expected = engine.solve("hello", SelfConsistency(3, PARAMS, first_letter), seed=4)
    assert texts(solution) == texts(expected)
    assert engine.solve("hello", branching(n=3, fan=1), seed=4).paths == solution.paths


def test_it_forks_in_front_of_uncertain_tokens_only(engine):
    points = []

    def spied():
        steps = branching(n=1, threshold=1.5, width=4).program("hello")
        request = next(steps)
        try:
            while True:
                result = yield request
                operations = request if isinstance(request, list) else [request]
                for op in operations:
                    if isinstance(op, Fork) and op.at is not None:
                        record = op.branch.records[op.at - op.branch.prompt_length]
                        newest = [r.entropy for r in op.branch.records][-4:]
                        points.append((record.entropy, max(newest)))
                        assert [kid.num_tokens for kid in op.result] == [op.at]
                request = steps.send(result)
        except StopIteration as stop:
            return stop.value

    solution = engine.run_program(spied())
    assert len(points) > 1
    assert all(entropy == largest > 1.5 for entropy, largest in points)
    assert 1 < len(solution.paths) <= 8


def test_the_width_bounds_what_goes_on(engine):
    held = []
    method = branching(width=3, threshold=0.0, fan=3, every=3)
    engine.observe(lambda stats: held.append(stats.num_branches))
    solution = engine.solve("hello", method)
    assert max(held) <= 9
    assert solution.tree is not None
    assert sum(path.finish_reason is not None for path in solution.paths) == len(solution.paths)


@pytest.mark.parametrize("scores", [[math.nan], [1.0, 2.0, 3.0]])
def test_a_bad_scorer_ends_its_question(engine, scores):
    method = branching(scorer=lambda branches: scores, n=2)
    with pytest.raises(ValueError, match="the scorer gave"):
        engine.solve("hello", method)
    assert engine.blocks_in_use == 0


def test_the_most_uncertain_token():
    assert most_uncertain([0.1, math.nan, 2.0, 2.0], 1.0) == 2
    assert most_uncertain([0.1, math.nan], 1.0) is None
    assert most_uncertain([1.0], 1.0) is None


# ---- SEAT ----


def test_semantic_entropy():
    assert semantic_entropy(["a"] * 4) == 0
    assert semantic_entropy(["a", "b"]) == pytest.approx(math.log(2))
    # Silence is no agreement.
    assert semantic_entropy([None, None]) == pytest.approx(math.log(2))
    assert semantic_entropy(["a", "a", None, "b"]) == pytest.approx(1.5 * math.log(2))


def test_the_secretary_finds_the_least_entropy_as_often_as_can_be():
    """Over all orders of five rounds: 2 are looked at, the best one is taken in 52 of 120."""
    found = 0
    for order in itertools.permutations(range(5)):
        taken = next((i for i in range(1, 5) if secretary(order[: i + 1], 5)), 4)
        assert taken >= 2
        found += order[taken] == 0
    assert found == 52


def test_rounds_read_the_answers_of_the_round_before(engine):
    never = lambda entropies, rounds: False  # noqa: E731
    first = engine.solve("hello", seat(rounds=1, n=3), seed=6)
    second = engine.solve("hello", seat(rounds=2, n=3, stop=never), seed=6)
    shown = "".join(f"\ntry {i}= {path.text.strip()}" for i, path in enumerate(first.paths, 1))
    assert all(path.text.startswith(shown + "\nnow: ") for path in second.paths)
    assert second.usage.generated_tokens == 2 * first.usage.generated_tokens
    # What votes is what a path says itself.
    said = [path.text.removeprefix(shown + "\nnow: ")[:1] for path in second.paths]
    assert [path.answer for path in second.paths] == [letter or None for letter in said]


def test_it_stops_where_the_rule_says(engine):
    seen = []

    def rule(entropies, rounds):
        seen.append(list(entropies))
        return len(entropies) == 2

    engine.solve("hello", seat(rounds=5, stop=rule))
    assert [len(entropies) for entropies in seen] == [1, 2]
    same = engine.solve("hello", seat(rounds=5, extract=lambda text: "same"))
    assert same.usage.generated_tokens == 4 * 12


def test_rounds_end_with_the_context():
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14, max_seq_len=64)
    solution = engine.solve("hello", seat(stop=lambda entropies, rounds: False, rounds=9))
    assert solution.usage.generated_tokens == 4 * 12
    assert engine.blocks_in_use == 0
