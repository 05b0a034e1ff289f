"""Experiments: their questions, their pools, and choices from stored samples."""

import math

import numpy as np
import pytest

from benchmarks.experiments import selectors
from benchmarks.experiments.aggregation import compared
from benchmarks.experiments.diminishing_returns import flat_from
from benchmarks.experiments.experiment import draw, right, tokens
from benchmarks.experiments.pool import Pool, Trace
from benchmarks.experiments.self_consistency import coverage_law
from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.questions import Question, load_questions
from parallel_decode.reasoning.consistency.stopping import beta_criterion
from parallel_decode.reasoning.scorer import likelihood
from parallel_decode.reasoning.weighting import best_only

PARAMS = SamplingParams(max_tokens=120)


def trace(answer: str | None, score: float = 1.0, num_tokens: int = 3) -> Trace:
    column = np.zeros(num_tokens, np.float32)
    ids = np.zeros(num_tokens, np.int64)
    return Trace("", answer, answer == "a", ids, column, column, 0.0, {"score": score})


def pool(*rows: str) -> Pool:
    """One question a row of answers; "a" is right."""
    question = Question("?", "kind", str, "a".__eq__)
    return Pool([question] * len(rows), [[trace(c) for c in row] for row in rows], 0)


def test_choices_on_small_cases():
    traces = [trace("b", 0.9), trace("a", 0.2), trace("a", 0.3), trace(None, 9.0)]
    assert selectors.majority(traces) == "a"
    assert selectors.scored("score")(traces) == "b"
    assert selectors.scored("score", best_only)(traces) == "b"
    assert selectors.oracle(traces) == "a" and selectors.oracle([traces[0]]) == "b"
    assert selectors.majority([trace(None)]) is None
    shuffled = selectors.shuffled("score", best_only)
    assert {shuffled(traces) for _ in range(50)} == {"a", "b"}


def test_a_stop_takes_the_first_samples():
    stop = selectors.stopped(beta_criterion(0.95), batch=1)
    assert len(stop([trace("a")] * 20)) == 4
    assert len(stop([trace("ab"[i % 2]) for i in range(20)])) == 20


def test_rows_compare_with_the_majority_of_the_same_samples():
    stored = pool("abb", "aab", "bba")
    assert right([stored], selectors.majority, 3).tolist() == [0, 1, 0]
    assert right([stored], selectors.oracle, 1).tolist() == [1, 1, 0]
    assert tokens([stored], 2) == 6
    row = compared([stored], selectors.oracle, 3)
    assert row["accuracy"] == 1 and row["rescue"] == 1 and row["harm"] == 0
    assert row["gain"] == pytest.approx(2 / 3)


def test_where_a_curve_is_flat():
    def rows(*lows: float):
        return [{"n": 2**i, "gain_low": low} for i, low in enumerate(lows)]

    assert flat_from(rows(0, 0.1, 0.1, -0.1, 0)) == 4
    assert flat_from(rows(0, -0.1, 0)) == 1
    assert flat_from(rows(0, 0.1, 0.1)) is None


def test_a_law_of_coverage_where_there_is_one():
    rows = [{"n": n, "pass_at_n": math.exp(-0.5 * n**-0.7)} for n in (1, 2, 4)]
    law = coverage_law(rows)
    assert law is not None and law.b == pytest.approx(-0.7)
    assert coverage_law([{"n": n, "pass_at_n": 0.0} for n in (1, 2, 4)]) is None


def test_equal_figures_are_equal_files(tmp_path):
    written = []
    for name in ("a.svg", "b.svg"):
        draw(tmp_path / name, [lambda axes: axes.plot([1, 2], [3, 4], label="x")])
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] and b"<svg" in written[0] and b"dc:date" not in written[0]


def test_a_pool_is_what_self_consistency_samples():
    engine = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 14)
    questions = load_questions("test", 3)
    first, again = (
        Pool.sample(engine, questions, 4, PARAMS, 7, {"likelihood": likelihood}) for _ in range(2)
    )
    assert first.traces[1][2].text == again.traces[1][2].text
    for question, traces in first:
        method = SelfConsistency(4, PARAMS, question.extract)
        solution = engine.solve(question.prompt, method, seed=7)
        assert [t.text for t in traces] == [path.text for path in solution.paths]
        for t, path in zip(traces, solution.paths, strict=True):
            assert t.answer == path.answer and 0 < t.scores["likelihood"] <= 1
            assert t.correct == (t.answer is not None and question.grade(t.answer))
            assert t.num_tokens == len(t.logprobs) == len(t.entropies)
    assert engine.blocks_in_use == 0
