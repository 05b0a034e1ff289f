"""Token beam search against exhaustive search over a vocabulary of five."""

import dataclasses
import functools
import itertools
import math

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from parallel_decode.engine import Budget, Engine, SamplingParams
from parallel_decode.engine.beam import TokenBeam
from parallel_decode.model.tokenizer import Tokenizer
from tests.tiny_model import next_logits, tiny_checkpoint, tiny_engine

BOS, EOS, VOCAB = 3, 4, 5


@functools.cache
def checkpoint():
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    tokenizer = Tokenizer(backend, BOS, (EOS,), add_bos=True)
    return dataclasses.replace(tiny_checkpoint(vocab_size=VOCAB), tokenizer=tokenizer)


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(checkpoint())


@functools.cache
def logprobs(tokens: tuple[int, ...]) -> list[float]:
    engine = tiny_engine(checkpoint())
    logits = next_logits(engine, engine.prefill(tokens))
    return torch.log_softmax(logits.double(), -1).tolist()


Scored = list[tuple[float, tuple[int, ...]]]


def exhaustive(prompt: list[int], depth: int, penalty: float) -> Scored:
    """Every text that ends with its first eos or at `depth`, best first."""
    scored = []
    for length in range(1, depth + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            if EOS in tokens[:-1] or (length < depth and tokens[-1] != EOS):
                continue
            total = math.fsum(
                logprobs((*prompt, *tokens[:i]))[token] for i, token in enumerate(tokens)
            )
            scored.append((total / length**penalty, tokens))
    return sorted(scored, key=lambda entry: -entry[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("question", ["a", "abcabcabcabcabc", "cabbac" * 6])
def test_a_beam_as_wide_as_the_tree_equals_exhaustive_search(engine, question, depth, penalty):
    prompt = engine.tokenizer.encode(question)
    width = VOCAB**depth
    result = engine.solve(question, TokenBeam(width, depth, (EOS,), penalty))
    expected = exhaustive(prompt, depth, penalty)
    assert len(result.branches) == len(expected)
    assert [tuple(b.output_tokens) for b in result.branches] == [tokens for _, tokens in expected]
    assert result.scores == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert result.texts == [engine.tokenizer.decode(list(tokens)) for _, tokens in expected]
    assert result.answer == result.texts[0]
    assert engine.blocks_in_use == 0
    engine.clear_prefixes()
    assert engine.cache.num_used == 0


def textbook(prompt: list[int], width: int, depth: int, penalty: float) -> Scored:
    """Beam search over lists of tokens."""
    live, finished = [(0.0, ())], []
    for length in range(1, depth + 1):
        candidates = sorted(
            (
                (total + logprob, (*tokens, token))
                for total, tokens in live
                for token, logprob in enumerate(logprobs((*prompt, *tokens)))
            ),
            key=lambda entry: -entry[0],
        )
        live = []
        for total, tokens in candidates:
            if len(live) == width:
                break
            if tokens[-1] == EOS:
                finished.append((total / length**penalty, tokens))
            else:
                live.append((total, tokens))
        finished = sorted(finished, key=lambda entry: -entry[0])[:width]
        if len(finished) == width and finished[-1][0] >= live[0][0] / length**penalty:
            break
    finished += [(total / len(tokens) ** penalty, tokens) for total, tokens in live]
    return sorted(finished, key=lambda entry: -entry[0])[:width]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("width", [2, 3, 7])
@pytest.mark.parametrize("question", ["a", "bbc" * 6])
def test_a_narrow_beam_equals_the_textbook(engine, question, width, penalty):
    prompt = engine.tokenizer.encode(question)
    result = engine.solve(question, TokenBeam(width, 12, (EOS,), penalty))
    expected = textbook(prompt, width, 12, penalty)
    assert [tuple(b.output_tokens) for b in result.branches] == [tokens for _, tokens in expected]
    assert result.scores == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("question", ["a", "cab", "bbc" * 6])
def test_width_one_is_greedy(engine, question):
    result = engine.solve(question, TokenBeam(1, 20, (EOS,)))
    root = engine.prefill(question)
    engine.extend(root, SamplingParams(temperature=0, max_tokens=20))
    assert result.branches[0].output_tokens == root.output_tokens
    assert result.scores[0] == pytest.approx(root.mean_logprob, abs=1e-5)


def test_a_finished_beam_ends_with_eos_and_not_with_the_best_token(engine):
    """Where the end is the second best token, the text must not hold the best one."""
    for question in ("a", "b", "c", "ab", "ca"):
        result = engine.solve(question, TokenBeam(20, 2, (EOS,)))
        for branch in result.branches:
            finished = branch.finish_reason == "eos"
            assert finished == (branch.output_tokens[-1] == EOS)
            assert (branch.status == "finished") == finished


def test_beams_share_what_they_have_in_common(engine):
    """A step runs one token a beam, whatever was reordered."""
    result = engine.solve("abc" * 30, TokenBeam(4, 8, (EOS,)))
    prompt = 1 + 90
    assert result.usage.computed_tokens <= prompt + 4 * 7
    assert result.usage.forward_steps <= 8
    assert result.usage.peak_blocks <= 6 + 4 * 2 * 2


def test_a_budget_ends_the_search_with_what_is_there(engine):
    for tokens in (0, 1, 6, 15):
        budget = Budget(tokens=tokens)
        result = engine.solve("abc", TokenBeam(4, 12, (EOS,)), budget=budget)
        assert result.usage.generated_tokens == tokens
        assert result.branches
        assert all(math.isfinite(score) for score in result.scores)
        for branch, score in zip(result.branches, result.scores, strict=True):
            text = branch.output_tokens
            prompt = branch.tokens[: branch.prompt_length]
            total = math.fsum(logprobs((*prompt, *text[:i]))[t] for i, t in enumerate(text))
            assert score == pytest.approx(total / max(1, len(text)), abs=1e-5)
    assert engine.blocks_in_use == 0


def test_in_a_pool_that_is_too_small_for_two(engine):
    questions = ["a" * n for n in (40, 50, 60, 70)]
    method = TokenBeam(3, 20, (EOS,))
    small = tiny_engine(checkpoint(), kv_tokens=16 * 14)
    expected = engine.solve_many(questions, method)
    results = small.solve_many(questions, method)
    assert [r.texts for r in results] == [r.texts for r in expected]
    assert [r.scores for r in results] == [r.scores for r in expected]
    assert small.usage.preemptions > 0
    assert small.blocks_in_use == 0


def test_bad_widths_are_named():
    for width, depth in ((0, 3), (2, 0)):
        with pytest.raises(ValueError, match=f"got {width}, {depth}"):
            TokenBeam(width, depth, (EOS,))
