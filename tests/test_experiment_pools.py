"""Stored pools: what is found is what would be sampled, and nothing else is found."""

import numpy as np

from benchmarks.experiments.pool import Pool
from benchmarks.experiments.pool_cache import PoolCache, pool_key
from benchmarks.experiments.scores import SCORERS, TOP_K, open_verifiers, step_score
from benchmarks.experiments.search import at_tokens
from benchmarks.experiments.verifiers import noisy_checker
from parallel_decode import Engine, SamplingParams
from parallel_decode.questions import load_questions
from parallel_decode.reasoning.metrics import within_question_discrimination
from tests.test_experiments import pool

PARAMS = SamplingParams(max_tokens=120, logprobs=TOP_K)


def test_a_large_pool_holds_the_small_ones(tmp_path):
    engine = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 14)
    questions, verifiers = load_questions("test", 3), open_verifiers("reasoner-verifier")
    large, small = (
        Pool.sample(engine, questions, n, PARAMS, 5, SCORERS, verifiers) for n in (6, 4)
    )
    assert engine.blocks_in_use == 0
    cache = PoolCache(tmp_path / "pools")
    assert cache.find("key", questions, 4, 5) is None
    cache.store("key", large)
    found = cache.find("key", questions, 4, 5)
    assert found is not None and found.seed == 5
    for row, again in zip(small.traces, found.traces, strict=True):
        for one, other in zip(row, again, strict=True):
            assert (one.text, one.answer, one.correct) == (other.text, other.answer, other.correct)
            assert one.scores == other.scores and one.steps == other.steps
            assert one.self_certainty == other.self_certainty
            for name in ("tokens", "logprobs", "entropies"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert step_score("process", "min")(one) == min(one.steps["process"])
    assert cache.find("key", questions, 7, 5) is None
    assert cache.find("other", questions, 4, 5) is None


def test_a_damaged_pool_is_not_there(tmp_path):
    cache = PoolCache(tmp_path)
    stored = pool("ab", "ba")
    cache.store("key", stored)
    [path] = tmp_path.iterdir()
    assert cache.find("key", stored.questions, 2, 0) is not None
    whole = path.read_bytes()
    for damaged in (b"", b"no pool", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert cache.find("key", stored.questions, 2, 0) is None


def test_a_key_names_all_that_samples_depend_on():
    questions = load_questions("test", 3)

    def key(
        verifier="reasoner-verifier", params=PARAMS, seed=0, questions=questions, scores=("a",)
    ):
        return pool_key("reasoner", verifier, questions, params, seed, scores)

    keys = [
        key(),
        key(verifier=None),
        key(params=SamplingParams(max_tokens=121, logprobs=TOP_K)),
        key(seed=1),
        key(questions=questions[:2]),
        key(scores=("a", "b")),
        pool_key("reasoner-draft", "reasoner-verifier", questions, PARAMS, 0, ("a",)),
    ]
    assert len(set(keys)) == len(keys) and key() == keys[0]


def test_a_noisy_checker_is_as_good_as_it_says():
    stored = pool(*["ab" * 50] * 40)
    for flip in (0.0, 0.2, 0.5):
        score = noisy_checker([stored], flip)
        scores = [[score(trace) for trace in traces] for _, traces in stored]
        correct = [[trace.correct for trace in traces] for _, traces in stored]
        # P(right scores more) = (1-p)^2 + p(1-p); 4000 verdicts, so 0.03 is more than 3 sigma.
        assert abs(within_question_discrimination(scores, correct) - (1 - flip)) < 0.03


def test_samples_of_as_many_tokens():
    stored = pool("bba", "abb")  # 3 tokens each

    def last(traces):
        return traces[-1].answer

    between = at_tokens([stored], last, 7.5)
    assert between.n == 2.5 and between.generated_tokens == 7.5
    assert between.right.tolist() == [0.5, 0.0]
    less, more = at_tokens([stored], last, 1.0), at_tokens([stored], last, 100.0)
    assert (less.n, less.generated_tokens, less.right.tolist()) == (1, 3, [0, 1])
    assert (more.n, more.generated_tokens, more.right.tolist()) == (3, 9, [1, 0])
