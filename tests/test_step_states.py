"""Hidden states at the ends of steps: kept as a branch grows or computed later, the same bits."""

import pytest
import torch

from parallel_decode import Engine, SamplingParams, Score
from parallel_decode.engine import Extend, Fork, Prefill, Prune
from parallel_decode.speculation import speculate
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine

STEP = "e"
FEW = frozenset(TEXT.index(letter) for letter in "abe12")
PARAMS = SamplingParams(max_tokens=40, ignore_eos=True, allowed_tokens=FEW)


def rows(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def ends_of(text: str) -> int:
    return text.count(STEP)


def recomputed(tokens: list[int], prompt_length: int) -> list[torch.Tensor]:
    """By a prefill of each prefix that ends a step, in an engine of its own."""
    engine = tiny_engine()
    step = engine.tokenizer.encode(STEP, add_bos=False)[0]
    last = len(tokens) - 1
    states = []
    for number in range(prompt_length, len(tokens)):
        if tokens[number] == step or number == last:
            branch = engine.prefill(tokens[: number + 1])
            states += engine.score(branch, head=rows)
            engine.prune(branch)
            engine.clear_prefixes()
    return states


def assert_same(given: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("keep", [(), STEP], ids=["computed later", "kept"])
@pytest.mark.parametrize("guesses", [None, "suffix"], ids=["plain", "with guesses"])
def test_states_at_step_ends_are_those_of_a_prefill(keep, guesses):
    engine = tiny_engine()
    if guesses:
        speculate(engine, guesses)
    root = engine.prefill("hello e")
    kids = engine.fork(root, 3)
    engine.extend(kids, PARAMS, keep_hidden=keep)
    assert sum(ends_of(kid.text) for kid in kids) > 0
    before = engine.usage.computed_tokens
    states = engine.score(kids, head=rows, at=STEP)
    computed = engine.usage.computed_tokens - before
    for kid, given in zip(kids, states, strict=True):
        assert len(given) == ends_of(kid.text) + (not kid.text.endswith(STEP))
        assert_same(given, recomputed(kid.tokens, kid.prompt_length))
    # What was kept costs nothing; the last token's keys are not there yet.
    assert computed == len(kids) if keep else computed > len(kids)
    text = [kid.text for kid in kids]
    engine.extend(kids, SamplingParams(max_tokens=5, ignore_eos=True))
    plain = tiny_engine()
    others = plain.fork(plain.prefill("hello e"), 3)
    plain.extend(others, PARAMS)
    assert [kid.text for kid in others] == text
    plain.extend(others, SamplingParams(max_tokens=5, ignore_eos=True))
    assert [kid.text for kid in others] == [kid.text for kid in kids]


def test_states_survive_forks_and_rollbacks_and_given_tokens():
    engine = tiny_engine()
    root = engine.prefill("hello")
    engine.extend(root, tokens="1+1e 2", keep_hidden=STEP)
    [kid] = engine.fork(root)
    engine.extend(kid, tokens="+3e5e", keep_hidden=STEP)
    assert len(kid.kept_hidden) == 2 + 1 and len(root.kept_hidden) == 1
    assert_same(*engine.score(kid, head=rows, at=STEP), recomputed(kid.tokens, 6))
    engine.rollback(kid, root.num_tokens + 3)
    assert len(kid.kept_hidden) == 2
    assert_same(*engine.score(kid, head=rows, at=STEP), recomputed(kid.tokens, 6))
    engine.prune([root, kid])
    assert engine.blocks_in_use == 0 and not kid.kept_hidden


@pytest.mark.parametrize("keep", [(), STEP], ids=["computed later", "kept"])
def test_pools_too_small_for_all_change_nothing(keep):
    def program(question):
        root = yield Prefill(question)
        kids = yield Fork(root, 4)
        yield Extend(kids, PARAMS, keep_hidden=keep)
        states = yield Score(kids, head=rows, at=STEP)
        yield Prune(kids)
        return [list(kid.tokens) for kid in kids], states

    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=16 * 36)
    programs = [engine.submit(program(f"question {n}")) for n in range(5)]
    engine.wait(programs)
    assert engine.usage.preemptions > 0
    for ended in programs:
        assert ended.error is None
        tokens, states = ended.result
        for one, given in zip(tokens, states, strict=True):
            assert_same(given, recomputed(one, len(engine.tokenizer.encode("question 0"))))
    assert engine.blocks_in_use == 0


def test_what_can_not_be_asked():
    engine = tiny_engine()
    root = engine.prefill("hello")
    with pytest.raises(ValueError, match="`at` goes with `head`"):
        engine.score(root, at=STEP)
    with pytest.raises(ValueError, match="must not be empty"):
        engine.score(root, head=rows, at=(STEP, ""))
    kids = engine.fork(root, 2)
    engine.extend(kids, tokens="e1e")
    with pytest.raises(ValueError, match="1 results for 4 steps"):
        engine.score(kids, head=lambda h: h[:1], at="1")
    joined = engine.join(root, kids, "kv_union")
    engine.extend(joined, tokens="e2")
    with pytest.raises(ValueError, match="was joined"):
        engine.score(joined, head=rows, at=STEP)
    [lone] = engine.score(root, head=rows, at=STEP)
    assert_same(lone, engine.score(root, head=rows))


def test_a_branch_that_grows_is_looked_at_once():
    engine = tiny_engine()
    root = engine.prefill("hello")
    params = SamplingParams(max_tokens=30, ignore_eos=True, allowed_tokens=FEW, stop=STEP)
    for _ in range(4):
        engine.extend(root, params)
        before = engine.usage
        [states] = engine.score(root, head=rows, at=STEP)
        assert engine.usage.computed_tokens - before.computed_tokens == 1
        assert engine.score(root, head=rows, at=STEP) and engine.usage.probes == before.probes + 1
    assert_same(states, recomputed(root.tokens, root.prompt_length))
