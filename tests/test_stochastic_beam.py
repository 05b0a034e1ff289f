"""Stochastic beam search against sampling without replacement, by enumeration."""

import itertools
import math
from collections import Counter

import pytest

from parallel_decode import Budget
from parallel_decode.reasoning import StochasticBeam
from tests.chi_square import assert_follows
from tests.search_cases import END, LETTERS, QUESTION, TOKENS, letters_law, small_engine, whole
from tests.tiny_model import TEXT


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def draw_often(engine, method: StochasticBeam, times: int) -> list[tuple[str, ...]]:
    programs = [engine.submit(method.program(QUESTION), seed=seed) for seed in range(times)]
    engine.wait(programs)
    for program in programs:
        if program.error is not None:
            raise program.error
    assert engine.blocks_in_use == 0
    return [tuple(path.text for path in program.result.paths) for program in programs]


def ordered_law(law: dict[str, float], size: int) -> dict[tuple[str, ...], float]:
    """Of `size` draws without replacement, in their order."""
    result = {}
    for texts in itertools.permutations(law, size):
        left, probability = 1.0, 1.0
        for text in texts:
            probability *= law[text] / left
            left -= law[text]
        result[texts] = probability
    return result


@pytest.mark.parametrize("ends", [False, True], ids=["one length", "ends at d"])
def test_draws_follow_sampling_without_replacement(engine, ends):
    """The ordered pairs, all of them, and how often each text is among three."""
    stop = (END,) if ends else ()
    law = letters_law(engine, 2, ends)

    def method(width):
        return StochasticBeam(
            width, 2, allowed_tokens=TOKENS, stop_tokens=stop, ignore_eos=True, extract=whole
        )

    pairs = draw_often(engine, method(2), 700)
    assert_follows(Counter(pairs), ordered_law(law, 2))
    triples = draw_often(engine, method(3), 300)
    assert all(len(set(triple)) == 3 for triple in triples)
    inclusion = Counter(text for triple in triples for text in triple)
    expected: Counter[str] = Counter()
    for texts, probability in ordered_law(law, 3).items():
        for text in texts:
            expected[text] += probability
    for text, probability in expected.items():
        error = math.sqrt(probability * (1 - probability) / len(triples)) + 1e-9
        assert abs(inclusion[text] / len(triples) - probability) < 4.5 * error


def test_one_beam_is_a_sample(engine):
    method = StochasticBeam(1, 2, allowed_tokens=TOKENS, ignore_eos=True, extract=whole)
    drawn = Counter(text for [text] in draw_often(engine, method, 600))
    assert_follows(drawn, letters_law(engine, 2, ends=False))


def test_temperature_is_that_of_each_token(engine):
    method = StochasticBeam(
        1, 1, temperature=3.0, allowed_tokens=TOKENS, ignore_eos=True, extract=whole
    )
    law = letters_law(engine, 1, ends=False)
    total = math.fsum(p ** (1 / 3) for p in law.values())
    drawn = Counter(text for [text] in draw_often(engine, method, 600))
    assert_follows(drawn, {text: p ** (1 / 3) / total for text, p in law.items()})


def test_no_sequence_comes_twice_and_all_come_where_there_is_room(engine):
    method = StochasticBeam(100, 3, allowed_tokens=TOKENS, ignore_eos=True, extract=whole)
    solution = engine.solve(QUESTION, method)
    texts = [path.text for path in solution.paths]
    assert sorted(texts) == sorted("".join(t) for t in itertools.product(LETTERS, repeat=3))
    scores = [path.score for path in solution.paths]
    assert scores == sorted(scores, reverse=True)
    # Each inner node ran once: a node's tokens are computed once for all of its children.
    assert solution.usage.computed_tokens == len(engine.tokenizer.encode(QUESTION)) + 4 + 16
    assert solution.usage.generated_tokens == 4 + 16 + 64


def test_the_whole_vocabulary_and_the_end_of_sequence(engine):
    solution = engine.solve(QUESTION, StochasticBeam(6, 12, extract=whole))
    tokens = [tuple(path.tokens) for path in solution.paths]
    assert len(set(tokens)) == 6
    [eos] = engine.tokenizer.eos_ids
    for path in solution.paths:
        assert (path.finish_reason == "eos") == (path.tokens[-1] == eos)
        assert len(path.tokens) == 12 or path.finish_reason == "eos"
    assert all(not math.isnan(p) for path in solution.paths for p in path.logprobs)


def test_where_the_context_or_the_budget_ends(engine):
    small = small_engine(max_seq_len=12)
    method = StochasticBeam(3, 40, allowed_tokens=TOKENS, ignore_eos=True, extract=whole)
    solution = small.solve(QUESTION, method)
    assert len({path.text for path in solution.paths}) == 3
    assert {len(path.text) for path in solution.paths} == {
        12 - len(small.tokenizer.encode(QUESTION))
    }
    assert small.blocks_in_use == 0
    cut = engine.solve(QUESTION, method, budget=Budget(tokens=10))
    assert cut.usage.generated_tokens == 10 and cut.paths and engine.blocks_in_use == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_parameters_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StochasticBeam(**settings)
    assert TEXT[END] == "d"
