"""Speculation on steps and candidates: its limits are known methods, bit for bit."""

import math

import pytest

from parallel_decode import BestOfN, Engine, SamplingParams, SelfConsistency
from parallel_decode.reasoning import SpecReason, SpeculativeRejection
from parallel_decode.reasoning.scorer import mean_logprob
from tests.tiny_model import tiny_checkpoint

STEP = SamplingParams(max_tokens=32)
HARD = "countdown 94 from 11 9 5\n"
QUESTION = "chain mod 10; a=4; b=a+7; c=b*7; d=c+5; d?\n"


def first_letter(text: str) -> str | None:
    return text[:1] or None


@pytest.fixture(scope="module")
def large() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 13)


@pytest.fixture(scope="module")
def small() -> Engine:
    return Engine.from_pretrained("reasoner-draft", threads=1, kv_tokens=1 << 13)


def constant(value: float):
    return lambda branches: [value] * len(branches)


def texts(solution) -> list[str]:
    return [path.text for path in solution.paths]


def test_above_all_scores_it_is_the_large_model(large, small):
    method = SpecReason(small, constant(9.0), 9.5, n=5, params=STEP, extract=first_letter)
    params = SamplingParams(max_tokens=32 * 40)
    expected = large.solve(HARD, SelfConsistency(5, params, first_letter), seed=3)
    solution = large.solve(HARD, method, seed=3)
    assert texts(solution) == texts(expected) and len(set(texts(solution))) > 1
    assert [p.logprobs for p in solution.paths] == [p.logprobs for p in expected.paths]
    assert solution.usage.delegated_tokens > 0
    assert large.blocks_in_use == small.blocks_in_use == 0


def test_below_all_scores_it_is_the_small_model(large, small):
    """Greedy, but for the end, which is the large model's to say."""
    greedy = SamplingParams(temperature=0.0, max_tokens=32)
    alone = SelfConsistency(1, SamplingParams(temperature=0.0, max_tokens=400), first_letter)
    method = SpecReason(small, constant(1.0), 0.0, params=greedy, extract=first_letter)
    [path] = large.solve(QUESTION, method).paths
    [expected] = small.solve(QUESTION, alone).paths
    assert path.text.startswith(expected.text) and expected.text.count("\n") > 2
    assert path.finish_reason == "eos"


def test_the_threshold_decides_how_many_steps_are_kept(large, small):
    seen: list[float] = []

    def scorer(branches):
        scores = [float(len(branch.tokens) % 10) for branch in branches]
        seen.extend(scores)
        return scores

    kept = []
    for threshold in (0.0, 3.0, 7.0, 9.5):
        seen.clear()
        method = SpecReason(small, scorer, threshold, n=4, params=STEP, extract=first_letter)
        solution = large.solve(QUESTION, method)
        drafted = sum(score >= threshold for score in seen)
        kept.append(drafted / len(seen))
        # What was kept was not sampled by the large model.
        assert (drafted == 0) == all(not math.isnan(x) for p in solution.paths for x in p.logprobs)
    assert kept[0] == 1 and kept[-1] == 0 and kept == sorted(kept, reverse=True)


def test_a_prompt_beyond_the_small_context_is_the_large_models(large):
    tiny = Engine.from_pretrained("reasoner-draft", threads=1, kv_tokens=1 << 10, max_seq_len=16)
    method = SpecReason(tiny, constant(9.0), 0.0, params=STEP, extract=first_letter)
    expected = large.solve(
        QUESTION, SelfConsistency(1, SamplingParams(max_tokens=1280), first_letter)
    )
    assert texts(large.solve(QUESTION, method)) == texts(expected)


def test_models_that_do_not_fit_are_refused(large):
    other = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 10)
    with pytest.raises(ValueError, match="vocabulary of 45 tokens"):
        large.solve(QUESTION, SpecReason(other, params=STEP))
    short = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 10, max_seq_len=64)
    with pytest.raises(ValueError, match="open it with max_seq_len=64"):
        short.solve(QUESTION, SpecReason(large, params=STEP))


def test_a_bad_scorer_fails_its_question_only(large, small):
    method = SpecReason(small, lambda b: [math.nan] * len(b), params=STEP)
    with pytest.raises(ValueError, match="gave nan"):
        large.solve(QUESTION, method)
    assert large.blocks_in_use == small.blocks_in_use == 0


def test_with_blocks_for_all_rejection_is_best_of_n(large):
    params = SamplingParams(max_tokens=200)
    best = large.solve(QUESTION, BestOfN(12, params=params, extract=first_letter))
    method = SpeculativeRejection(12, 1000, params=params, extract=first_letter)
    solution = large.solve(QUESTION, method)
    assert texts(solution) == texts(best) and solution.answer == best.answer


@pytest.mark.parametrize("kv_blocks", [1, 8, 20, 40])
def test_rejection_keeps_within_its_blocks(large, kv_blocks):
    """Until one candidate is left."""
    params = SamplingParams(max_tokens=200)
    calls: list[list[float]] = []

    def scorer(branches):
        calls.append(mean_logprob(branches))
        return calls[-1]

    method = SpeculativeRejection(16, kv_blocks, 0.5, scorer, params=params, extract=first_letter)
    solution = large.solve(QUESTION, method)
    prompt_blocks = 2
    assert solution.usage.peak_blocks <= max(kv_blocks, 16) + prompt_blocks + 16
    dropped = [node for node in solution.tree.children if node.status == "pruned"]
    assert (len(dropped) == 15) == (kv_blocks == 1)
    assert solution.paths and large.blocks_in_use == 0
    # A look drops half of those that run, the worst.
    assert len(calls) >= (2 if dropped else 1)


def test_what_is_dropped_scores_less_than_what_is_kept(large):
    scores = {}

    def by_name(branches):
        for branch in branches:
            scores[branch.path] = float(branch.path[-1])
        return [scores[branch.path] for branch in branches]

    method = SpeculativeRejection(
        8, 12, 0.25, by_name, params=SamplingParams(max_tokens=64), extract=first_letter
    )
    solution = large.solve(QUESTION, method)
    alive = [int(node.name) for node in solution.tree.children if node.status != "pruned"]
    gone = [int(node.name) for node in solution.tree.children if node.status == "pruned"]
    assert alive and gone and min(alive) >= min(gone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kv_blocks": 0}, "kv_blocks"), ({"alpha": 1.0}, "alpha"), ({"n": 0}, "n must")],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeRejection(**arguments)
