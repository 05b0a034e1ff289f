"""Speculation on steps and candidates: its limits are known methods, bit for bit."""

import itertools
import math
import zlib

import pytest

from parallel_decode import BestOfN, Engine, SamplingParams, SelfConsistency
from parallel_decode.reasoning import SpecReason, SpeculativeRejection
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


def test_steps_cut_at_their_length_go_on_as_the_next_ones(large):
    short = SamplingParams(max_tokens=3)
    method = SpecReason(None, n=3, max_steps=20, params=short, extract=first_letter)
    expected = SelfConsistency(3, SamplingParams(max_tokens=60), first_letter)
    assert texts(large.solve(QUESTION, method)) == texts(large.solve(QUESTION, expected))


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_a_step_stays_where_its_own_score_reaches_the_threshold(large, small, threshold):
    """A token that was given has no log-probability, one that the large model drew has one."""
    offered: dict[tuple[int, ...], list[tuple[list[int], int, float]]] = {}

    def scorer(branches):
        scores = [float(zlib.crc32(str(branch.tokens).encode()) % 4) for branch in branches]
        for branch, score in zip(branches, scores, strict=True):
            given = len(list(itertools.takewhile(math.isnan, reversed(branch.logprobs))))
            offered.setdefault(branch.path, []).append((branch.output_tokens, given, score))
        return scores

    method = SpecReason(small, scorer, threshold, n=4, params=STEP, extract=first_letter)
    verdicts = set()
    for seed in range(6):
        offered.clear()
        for number, path in enumerate(large.solve(HARD, method, seed=seed).paths):
            for tokens, given, score in offered[(number,)]:
                assert given > 0 and not set(tokens) & set(large.tokenizer.eos_ids)
                end = len(tokens)
                kept = path.tokens[:end] == tokens and math.isnan(path.logprobs[end - 1])
                assert kept == (score >= threshold)
                verdicts.add((kept, score == threshold))
    assert {(True, True), (True, False), (False, False)} <= verdicts


def survivors(lengths: list[int], kv_blocks: int, alpha: float, scores: list[float]) -> list[int]:
    """Speculative rejection replayed on whole candidates of these lengths, 16 tokens at a time."""
    kept = live = list(range(len(lengths)))
    for at in itertools.count(0, 16):
        while len(live) > 1:
            ahead = [min(at, lengths[i]) + 16 * (i in live) for i in kept]
            if sum(math.ceil(tokens / 16) for tokens in ahead) <= kv_blocks:
                break
            drops = min(math.ceil(alpha * len(live)), len(live) - 1)
            worst = sorted(live, key=lambda i: scores[i])[:drops]
            kept, live = ([i for i in some if i not in worst] for some in (kept, live))
        live = [i for i in live if lengths[i] > at + 16]
        if not live:
            return kept
    raise AssertionError


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.95])
@pytest.mark.parametrize("kv_blocks", [1, 10, 17, 30, 45])
def test_rejection_is_a_replay_on_best_of_n(large, kv_blocks, alpha):
    """Each candidate that is left is what it is among all, and it is those that the rule leaves."""
    params = SamplingParams(temperature=1.7, max_tokens=200)
    scores = [float(7 * number % 12) for number in range(12)]

    def scorer(branches):
        return [scores[branch.path[0]] for branch in branches]

    whole = large.solve(HARD, BestOfN(12, scorer, params=params, extract=str)).paths
    method = SpeculativeRejection(12, kv_blocks, alpha, scorer, params=params, extract=str)
    solution = large.solve(HARD, method)
    assert len({path.text for path in whole}) == 12
    left = survivors([len(path.tokens) for path in whole], kv_blocks, alpha, scores)
    assert texts(solution) == [whole[i].text for i in left]
    assert solution.answer == whole[max(left, key=lambda i: scores[i])].text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kv_blocks": 0}, "kv_blocks"), ({"alpha": 1.0}, "alpha"), ({"n": 0}, "n must")],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeRejection(**arguments)
