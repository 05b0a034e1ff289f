"""Programs, budgets, streams, messages and failures: what runs together does not disturb itself."""

import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parallel_decode.engine import (
    Branch,
    Broadcast,
    Budget,
    Engine,
    Extend,
    FirstOf,
    Fork,
    Join,
    Operation,
    Prefill,
    Prune,
    Rollback,
    SamplingParams,
    Score,
)
from parallel_decode.kernels import BLOCK_SIZE
from tests.tiny_model import TEXT, next_logits, plain_logits, tiny_engine

ROOT = Path(__file__).parents[1]


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


def decoding(n: int) -> SamplingParams:
    return SamplingParams(max_tokens=n, ignore_eos=True)


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


def assert_idle(engine: Engine) -> None:
    """Nothing runs, nobody holds a block, and the engine still works."""
    assert engine._primitives.running == {}
    assert engine._scheduler._finishers == {}
    assert engine._scheduler._queue == {}
    assert not engine._scheduler._works
    assert not engine._scheduler.live_programs
    assert engine.blocks_in_use == 0
    root = engine.prefill(token_ids(37, seed=77))
    assert torch.equal(next_logits(engine, root), plain_logits(token_ids(37, seed=77)))
    engine.prune(root)
    engine.clear_prefixes()
    assert engine.cache.num_used == 0


# ---- programs ----


def test_a_program_gets_what_it_yields_for(engine):
    def program():
        root = yield Prefill(token_ids(20))
        assert isinstance(root, Branch)
        kids = yield Fork(root, 3)
        assert [kid.path for kid in kids] == [(0,), (1,), (2,)]
        assert (yield Extend(kids, decoding(4))) == kids
        a, b = yield [Score(kids[:1], [1, 2]), Extend(kids[1:], decoding(2))]
        assert len(a[0]) == 2
        assert b == kids[1:]
        assert (yield (Score(kids[:1]),)) == [[kids[0].records[-1]]]
        assert (yield []) == []
        assert (yield Rollback(kids[0], 21)) is kids[0]
        assert (yield Broadcast(kids, [1])) is None
        assert (yield Prune(kids[:1])) is None
        joined = yield Join(root, kids[1:], "kv_union")
        return joined.num_tokens

    assert engine.run_program(program()) == 20 + 2 * 7
    assert_idle(engine)


def test_programs_run_in_the_same_steps(engine):
    def program(seed):
        root = yield Prefill(token_ids(20, seed))
        yield Extend([root], decoding(10))
        return root.output_tokens

    programs = [engine.submit(program(seed)) for seed in range(5)]
    engine.wait(programs)
    assert engine.usage.forward_steps == 10
    for seed, running in enumerate(programs):
        assert running.result == tiny_engine().run_program(program(seed))
    assert_idle(engine)


def test_an_error_is_thrown_into_the_program_and_may_be_caught(engine):
    caught = []

    def program():
        root = yield Prefill(token_ids(20))
        for wrong in (
            Rollback(root, 99),
            Fork(root, 0),
            Extend([root], tokens=[9999]),
            Score([root], [9999]),
            Join(root, [], "text"),
            Prefill([]),
            FirstOf([Rollback(root, 99), Score([root], [1])]),
            [Extend([root], decoding(2)), Fork(root, -1)],
            [FirstOf([])],
        ):
            try:
                yield wrong
            except (ValueError, TypeError) as error:
                caught.append(str(error))
        yield Extend([root], decoding(1))
        return root

    root = engine.run_program(program(), keep=True)
    assert len(caught) == 9
    assert root.num_sampled == 2 + 1
    assert "must yield one of Prefill" in caught[-1]
    engine.prune(root)
    assert_idle(engine)


def test_results_of_the_other_operations_survive_an_error(engine):
    def program():
        root = yield Prefill(token_ids(20))
        good, bad = Fork(root, 2), Fork(root, 0)
        with pytest.raises(ValueError, match="can't fork 0"):
            yield [good, bad]
        assert good.done
        return len(good.result)

    assert engine.run_program(program()) == 2
    assert_idle(engine)


@pytest.mark.parametrize(
    "nonsense",
    [None, 5, "text", [3], [Prefill([1]), None], FirstOf([Prefill([1]), 7]), Operation()],
    ids=str,
)
def test_a_program_that_yields_nonsense_ends_with_a_type_error(engine, nonsense):
    closed = []

    def program():
        try:
            root = yield Prefill(token_ids(20))
            yield Fork(root, 2)
            yield nonsense
        finally:
            closed.append(True)

    with pytest.raises(TypeError, match="must yield"):
        engine.run_program(program())
    assert closed == [True]
    assert_idle(engine)


def test_a_program_that_raises_takes_its_branches_along(engine):
    def failing():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 4)
        yield FirstOf([Extend(kids[:2], decoding(3)), Extend(kids[2:], decoding(300))])
        raise KeyError("enough")

    def fine():
        root = yield Prefill(token_ids(20, seed=1))
        yield Extend([root], decoding(20))
        return root.output_tokens

    programs = [engine.submit(failing()), engine.submit(fine())]
    engine.wait(programs)
    assert isinstance(programs[0].error, KeyError)
    assert programs[1].result == tiny_engine().run_program(fine())
    assert_idle(engine)


def test_a_generator_that_refuses_to_close(engine):
    def stubborn():
        while True:
            try:
                yield None
            except GeneratorExit:
                yield None

    with pytest.raises(TypeError, match="must yield"):
        engine.run_program(stubborn())
    assert_idle(engine)


def test_what_is_no_generator_is_an_error(engine):
    with pytest.raises(AttributeError):
        engine.run_program([Prefill([1])])
    assert_idle(engine)


def test_the_same_branch_in_two_operations(engine):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 2)
        first = Extend(kids, decoding(5))
        with pytest.raises(ValueError, match="running in another operation"):
            yield [first, Extend(kids[:1], decoding(5))]
        assert first.done
        return [kid.num_sampled for kid in kids]

    assert engine.run_program(program()) == [5, 5]
    assert_idle(engine)


def test_operations_on_a_branch_with_pending_tokens_wait_for_each_other(engine):
    """As a rule a fork takes no time. Where it does, what comes after it waits for it."""

    def program():
        root = yield Prefill(token_ids(20))
        yield Broadcast([root], [1, 2, 3])
        first, second, _ = yield [Fork(root, 2), Fork(root, 1), Score([root], [5])]
        assert [kid.path for kid in (*first, *second)] == [(0,), (1,), (2,)]
        yield Broadcast([root, *first], [4])
        kids, grown = yield [Fork(root, 1), Extend([root], decoding(2))]
        assert kids[0].num_tokens == 24
        assert grown[0].num_tokens == 26
        return root

    root = engine.run_program(program(), keep=True)
    assert torch.equal(next_logits(engine, root), plain_logits(root.tokens))

    def joining():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 2)
        yield Broadcast(kids, [1, 2])
        again, joined, rolled = yield [
            Fork(kids[0], 1),
            Join(root, kids, "kv_union"),
            Rollback(kids[0], 21),
        ]
        assert again[0].own_text == ""
        assert (again[0].num_tokens, joined.num_tokens, rolled.num_tokens) == (22, 24, 21)

    engine.run_program(joining())


# ---- FirstOf ----


def test_first_of_leaves_the_others_running(engine):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 3)
        short, long = Extend(kids[:1], decoding(3)), Extend(kids[1:2], decoding(20))
        assert (yield FirstOf([long, short])) == [short]
        assert not long.done
        middle = Extend(kids[2:], decoding(5))
        assert (yield FirstOf([long, middle])) == [middle]
        assert 3 < kids[1].num_sampled < 20
        # What is done already counts at once, and an operation can be waited for again.
        assert (yield FirstOf([short, long])) == [short]
        assert (yield [long, short]) == [kids[1:2], kids[:1]]
        assert (yield long) == kids[1:2]
        return [kid.output_tokens for kid in kids]

    outputs = engine.run_program(program())
    other = tiny_engine()
    kids = other.fork(other.prefill(token_ids(20)), 3)
    other.extend(kids, decoding(20))
    assert outputs == [kid.output_tokens[:n] for kid, n in zip(kids, (3, 20, 5), strict=True)]
    assert_idle(engine)


def test_first_of_several_that_end_together(engine):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 2)
        operations = [Extend([kid], decoding(4)) for kid in kids]
        return (yield FirstOf(operations)) == operations

    assert engine.run_program(program()) is True


@pytest.mark.parametrize("kind", ["score", "fork", "prefill", "join", "text"])
def test_a_program_may_end_while_something_of_it_runs(kind):
    """Views and claims belong to no branch of the program; they go with it all the same."""
    engine = tiny_engine(max_batch_tokens=4)
    started = []

    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 2)
        yield Extend(kids, tokens=token_ids(30))
        [quick] = yield Fork(root, 1)
        if kind in ("join", "text"):
            yield Broadcast(kids, token_ids(40))
        slow = {
            "score": Score(kids, token_ids(40, seed=1)),
            "fork": Fork(kids[0], 2, at=30),
            "prefill": Prefill(token_ids(60, seed=5)),
            "join": Join(root, kids, "kv_union"),
            "text": Join(root, kids, "text"),
        }[kind]
        started.append(slow)
        return (yield FirstOf([slow, Extend([quick], decoding(1))]))

    other = engine.submit(iter_prefill(token_ids(60, seed=5)))
    running = engine.submit(program())
    engine.wait([running, other])
    if running.error is not None:
        raise running.error
    assert torch.equal(other.result, plain_logits(token_ids(60, seed=5)))
    assert_idle(engine)


def iter_prefill(prompt):
    root = yield Prefill(prompt)
    [kid] = yield Fork(root)
    return kid.logits.clone()


# ---- budgets ----


@pytest.mark.parametrize("tokens", [0, 1, 10, 19])
def test_a_budget_of_tokens_is_exact(engine, tokens):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 4)
        yield Extend(kids, decoding(5))
        yield Extend(kids, decoding(5))
        return kids

    running = engine.submit(program(), budget=Budget(tokens=tokens))
    other = engine.submit(program())
    engine.wait([running, other])
    assert running.usage.generated_tokens == tokens
    assert sum(kid.num_sampled for kid in running.result) == tokens
    assert {kid.finish_reason for kid in running.result} == {"budget"}
    assert [kid.num_sampled for kid in other.result] == [10] * 4
    for kid, full in zip(running.result, other.result, strict=True):
        assert kid.output_tokens == full.output_tokens[: kid.num_sampled]
    assert_idle(engine)


def test_budgets_of_steps_seconds_and_blocks(engine):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 4)
        yield Extend(kids, decoding(50))
        return kids

    # The first step computes the prompt.
    for budget, samples in [(Budget(steps=5), 4 * 4), (Budget(seconds=0), 0)]:
        running = engine.submit(program(), budget=budget)
        engine.wait([running])
        assert running.usage.generated_tokens == samples
        assert {kid.finish_reason for kid in running.result} == {"budget"}
    running = engine.submit(program(), budget=Budget(blocks=10))
    engine.wait([running])
    assert 0 < running.usage.generated_tokens < 200
    assert running.usage.peak_blocks <= 10 + 4
    assert_idle(engine)


@pytest.mark.parametrize("name", ["tokens", "steps", "blocks", "seconds"])
def test_negative_budgets_are_named(name):
    with pytest.raises(ValueError, match=f"budget of {name} must not be negative, got -1"):
        Budget(**{name: -1})


# ---- usage ----


def test_usage_counts_every_token_once(engine):
    def program(seed):
        root = yield Prefill(token_ids(20, seed))
        kids = yield Fork(root, 3)
        yield Extend(kids, decoding(5))
        yield Prune(kids[:1])
        yield Extend(kids[1:], decoding(4), tokens=[1, 2])
        yield Score(kids[1:], [1, 2, 3])
        return kids

    programs = [engine.submit(program(seed)) for seed in range(3)]
    engine.wait(programs)
    for running in programs:
        usage = running.usage
        assert usage.generated_tokens == sum(kid.num_sampled for kid in running.result) == 23
        assert usage.prompt_tokens == 20
        # Prompt; 4 of 5 sampled each; the pending one and what follows but the last; probes: the
        # pending one and the continuation but its last.
        assert usage.computed_tokens == 20 + 3 * 4 + 2 * (1 + 2 + 3) + 2 * (1 + 2)
        assert usage.probes == 2
        assert usage.wall_seconds > 0
    total = engine.usage
    for name in ("generated_tokens", "prompt_tokens", "computed_tokens", "probes"):
        assert getattr(total, name) == sum(getattr(p.usage, name) for p in programs)
    assert total.forward_steps == max(p.usage.forward_steps for p in programs)
    assert total.kv_tokens_read <= total.kv_tokens_logical
    assert_idle(engine)


# ---- streams ----


def test_a_stream_gives_what_extend_gives(engine):
    params = decoding(9)
    expected = tiny_engine()
    kids = expected.fork(expected.prefill(token_ids(20)), 3)
    expected.extend(kids, params)
    streamed = engine.fork(engine.prefill(token_ids(20)), 3)
    tokens = {id(branch): [] for branch in streamed}
    texts = {id(branch): "" for branch in streamed}
    order = []
    for branch, token, text in engine.stream(streamed, params):
        tokens[id(branch)].append(token)
        texts[id(branch)] += text
        order.append(branch.path)
    assert order == [(0,), (1,), (2,)] * 9
    for branch, kid in zip(streamed, kids, strict=True):
        assert tokens[id(branch)] == branch.output_tokens == kid.output_tokens
        assert texts[id(branch)] == branch.text
        assert branch.finish_reason == "length"
    engine.prune([streamed[0].parent, *streamed])
    assert_idle(engine)


def test_closing_a_stream_early_aborts_its_branches(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 3)
    stream = engine.stream(kids, decoding(200))
    for number, _ in enumerate(stream):
        if number == 10:
            break
    stream.close()
    assert {kid.finish_reason for kid in kids} == {"aborted"}
    counts = [kid.num_sampled for kid in kids]
    assert counts == [4, 4, 4]
    engine.extend(kids, decoding(3))
    expected = tiny_engine()
    same = expected.fork(expected.prefill(token_ids(20)), 3)
    expected.extend(same, decoding(7))
    assert [kid.output_tokens for kid in kids] == [kid.output_tokens for kid in same]
    engine.prune([kids[0].parent, *kids])
    assert_idle(engine)


def test_a_stream_that_was_never_read_leaves_nothing(engine):
    root = engine.prefill(token_ids(20))
    stream = engine.stream(root, decoding(5))
    stream.close()
    del stream
    engine.prune(root)
    assert_idle(engine)


def test_the_engine_may_be_used_between_the_items_of_a_stream(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 3)
    seen = 0
    for branch, _, _ in engine.stream(kids[:2], decoding(12)):
        seen += 1
        if seen == 5:
            engine.extend(kids[2], decoding(4))
        if seen == 9:
            engine.abort(kids[1])
        assert branch in kids[:2]
    assert kids[0].num_sampled == 12
    assert kids[1].finish_reason == "aborted"
    assert seen == kids[0].num_sampled + kids[1].num_sampled


def test_a_stream_raises_what_extend_would(engine):
    root = engine.prefill(token_ids(20))
    engine.prune(root)
    with pytest.raises(ValueError, match="pruned"):
        next(engine.stream(root, decoding(5)))
    assert_idle(engine)


# ---- messages ----


def replayed(branch: Branch, begin: int) -> bool:
    """Whether each sampled token of a greedy branch follows from the tokens before it."""
    for number, record in enumerate(branch.records, branch.prompt_length):
        if record.sampled and number >= begin:
            path = branch.tokens[:number]
            if int(plain_logits(path).argmax()) != branch.tokens[number]:
                return False
    return True


def test_messages_are_taken_before_the_next_token_in_the_order_sent(engine):
    greedy = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    kids = engine.fork(engine.prefill(token_ids(20)), 3)

    def on_token(branch, token):
        if branch is kids[1] and branch.num_sampled == 4:
            engine.broadcast(kids, [1, 2, 3])
            engine.broadcast(kids[:2], [4])

    engine.extend(kids, greedy, on_token=on_token)
    given = [[i for i, r in enumerate(kid.records) if not r.sampled] for kid in kids]
    # Child 2 had not drawn its fourth token yet when the message was sent; it is told after it.
    assert given == [[4, 5, 6, 7], [4, 5, 6, 7], [4, 5, 6]]
    for kid, numbers in zip(kids, given, strict=True):
        assert [kid.output_tokens[i] for i in numbers] == [1, 2, 3, 4][: len(numbers)]
        assert kid.num_sampled == 10
        assert replayed(kid, 20)
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))


def test_a_message_waits_for_its_safe_point(engine):
    newline = engine.tokenizer.encode("\n", add_bos=False)[0]
    params = SamplingParams(max_tokens=60, ignore_eos=True, logit_bias={newline: 2.0})
    kids = engine.fork(engine.prefill(token_ids(20)), 4)

    def on_token(branch, token):
        if branch.num_sampled == 3:
            engine.broadcast(branch, "hear", after="\n")
            engine.broadcast(branch, "me")

    engine.extend(kids, params, on_token=on_token)
    for kid in kids:
        # The second message has no safe point of its own, but it does not overtake the first.
        where = kid.text.index("hearme")
        assert kid.text[where - 1] == "\n"
        assert "\n" not in kid.text[2 : where - 1]
        assert kid.num_sampled == 60


def test_what_a_branch_was_told_as_it_ended_is_not_lost(engine):
    """As its last token came it was told something: it is idle then, and takes it at once."""
    kids = engine.fork(engine.prefill(token_ids(20)), 2)

    def on_token(branch, token):
        if branch.num_sampled == 3:
            engine.broadcast(kids, [1, 2])

    engine.extend(kids, decoding(3), on_token=on_token)
    assert [kid.output_tokens[3:] for kid in kids] == [[1, 2, 1, 2]] * 2
    engine.extend(kids, decoding(2))
    assert torch.equal(next_logits(engine, kids[0]), plain_logits(kids[0].tokens))


def test_broadcast_from_a_program_to_what_it_runs(engine):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 3)
        clock, talk = Extend(kids[:1], decoding(4)), Extend(kids[1:], decoding(10))
        assert (yield FirstOf([clock, talk])) == [clock]
        yield Broadcast([kids[2], kids[1]], [7, 8])
        yield talk
        return kids[1:]

    for kid in engine.run_program(program()):
        assert kid.output_tokens[4:6] == [7, 8]
        assert kid.num_sampled == 10
    assert_idle(engine)


# ---- failures of one branch ----


def test_nan_in_the_keys_of_one_branch_fails_it_alone(engine):
    """Its siblings finish with the same tokens, also those that get its blocks afterwards."""
    healthy = tiny_engine()
    expected = healthy.fork(healthy.prefill(token_ids(20)), 3)
    healthy.extend(expected, decoding(60))

    kids = engine.fork(engine.prefill(token_ids(20)), 3)
    engine.extend(kids, decoding(5))
    for layer in range(engine.cache.num_layers):
        for cache in engine.cache.layer(layer):
            cache[kids[1].table.entries()[-1][0]] = torch.nan
    engine.extend(kids, decoding(55))
    assert (kids[1].status, kids[1].finish_reason) == ("failed", "error")
    assert "NaN" in kids[1].error
    assert kids[1].num_stored == 0
    assert kids[1].num_sampled == 5
    for kid, full in zip((kids[0], kids[2]), (expected[0], expected[2]), strict=True):
        assert kid.output_tokens == full.output_tokens
        assert kid.records == full.records
    with pytest.raises(ValueError, match="can't go on: the model's logits hold a NaN"):
        engine.extend(kids[1], decoding(1))
    # Fill the whole pool, so that the poisoned block is used again.
    others = [engine.prefill(token_ids(300, seed=i)) for i in range(12)]
    for i, other in enumerate(others):
        assert torch.equal(next_logits(engine, other), plain_logits(token_ids(300, seed=i)))
    engine.prune([kids[0].parent, *kids, *others])
    assert_idle(engine)


def test_nan_logits_of_one_row(engine):
    healthy = tiny_engine()
    expected = healthy.fork(healthy.prefill(token_ids(20)), 4)
    healthy.extend(expected, decoding(12))
    kids = engine.fork(engine.prefill(token_ids(20)), 4)
    plain, calls = engine.model.logits, []

    def poisoned(hidden):
        logits = plain(hidden)
        calls.append(len(hidden))
        if len(calls) == 6:
            logits[2, 11] = torch.nan
        return logits

    engine.model.logits = poisoned
    engine.extend(kids, decoding(12))
    engine.model.logits = plain
    assert [kid.status for kid in kids] == ["live", "live", "failed", "live"]
    for kid, full in zip(kids, expected, strict=True):
        assert kid.output_tokens == full.output_tokens[: kid.num_sampled]
    assert kids[2].num_sampled == 6
    engine.prune([kids[0].parent, *kids])
    assert_idle(engine)


# ---- callbacks ----


class Trouble(Exception):
    pass


def test_an_exception_in_on_token_ends_its_program_alone(engine):
    def failing():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 3)

        def on_token(branch, token):
            if branch is kids[1] and branch.num_sampled == 5:
                raise Trouble("on_token")

        yield Extend(kids, decoding(50), on_token=on_token)

    def fine():
        root = yield Prefill(token_ids(20, seed=1))
        yield Extend([root], decoding(20))
        return root.output_tokens

    programs = [engine.submit(failing()), engine.submit(fine()), engine.submit(failing())]
    engine.wait(programs)
    assert [type(program.error) for program in programs] == [Trouble, type(None), Trouble]
    assert programs[1].result == tiny_engine().run_program(fine())
    assert_idle(engine)


def test_an_exception_in_on_token_of_a_direct_call(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 3)

    def on_token(branch, token):
        if branch.num_sampled == 5:
            raise Trouble("on_token")

    with pytest.raises(Trouble):
        engine.extend(kids, decoding(50), on_token=on_token)
    assert [kid.num_sampled for kid in kids] == [5, 4, 4]
    engine.extend(kids, decoding(2))
    for kid in kids:
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))
    engine.prune([kids[0].parent, *kids])
    assert_idle(engine)


@pytest.mark.parametrize("continuation", [(), (1, 2)], ids=["last token", "continuation"])
def test_an_exception_in_a_head(engine, continuation):
    kids = engine.fork(engine.prefill(token_ids(20)), 3)
    engine.extend(kids, decoding(5))
    blocks = engine.blocks_in_use

    def head(hidden):
        raise Trouble("head")

    with pytest.raises(Trouble):
        engine.score(kids, continuation, head)
    with pytest.raises(ValueError, match="head gave 2 results for 3 branches"):
        engine.score(kids, continuation, lambda hidden: [1, 2])
    assert engine.blocks_in_use == blocks
    engine.prune([kids[0].parent, *kids])
    assert_idle(engine)


def test_an_exception_in_extract_and_in_an_observer(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, decoding(5))

    def extract(branch):
        raise Trouble("extract")

    with pytest.raises(Trouble):
        engine.join(root, kids, "answer", extract=extract)

    def observer(stats):
        raise Trouble("observer")

    stop = engine.observe(observer)
    with pytest.raises(Trouble):
        engine.extend(kids, decoding(5))
    stop()
    engine.extend(kids, decoding(5))
    for kid in kids:
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))
    engine.prune([root, *kids])
    assert_idle(engine)


def test_an_exception_in_the_model_leaves_branches_that_can_be_computed_again(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 3)
    engine.extend(kids, decoding(5))
    plain, calls = engine.model.forward, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise Trouble("model")
        return plain(*args)

    engine.model.forward = failing
    with pytest.raises(Trouble):
        engine.extend(kids, decoding(10))
    engine.extend(kids, decoding(3))
    for kid in kids:
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))
    engine.prune([root, *kids])
    assert_idle(engine)


def test_the_engine_can_not_be_run_inside_a_step(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 2)

    def on_token(branch, token):
        engine.extend(branch, decoding(1))

    with pytest.raises(RuntimeError, match="in the middle of a step"):
        engine.extend(kids, decoding(5), on_token=on_token)

    def program():
        root = yield Prefill(token_ids(5))
        engine.fork(root, 2)

    with pytest.raises(RuntimeError, match="in the middle of a step"):
        engine.run_program(program())
    engine.extend(kids, decoding(2))
    for kid in kids:
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))
    engine.prune([kids[0].parent, *kids])
    assert_idle(engine)


def test_programs_may_be_submitted_in_the_middle_of_a_step(engine):
    submitted = []

    def later():
        root = yield Prefill(token_ids(9))
        return root.num_tokens

    def on_token(branch, token):
        if not submitted:
            submitted.append(engine.submit(later()))

    root = engine.prefill(token_ids(20))
    engine.extend(root, decoding(10), on_token=on_token)
    engine.wait(submitted)
    assert submitted[0].result == 9
    engine.prune(root)
    assert_idle(engine)


# ---- solve ----


class Samples:
    """A method: n samples of a question."""

    def __init__(self, n: int, max_tokens: int = 10, on_token=None) -> None:
        self.n, self.max_tokens, self.on_token = n, max_tokens, on_token

    def program(self, question):
        root = yield Prefill(question)
        kids = yield Fork(root, self.n)
        yield Extend(kids, decoding(self.max_tokens), on_token=self.on_token)
        return SimpleNamespace(texts=[kid.text for kid in kids])


def test_solve_many_with_failing_questions():
    engine = tiny_engine(max_seq_len=64)
    questions = ["abc", "x" * 100, "abc def", [9999], "ghi"]
    arrived = []
    results = engine.solve_many(
        questions, Samples(3), on_result=lambda index, result: arrived.append((index, result))
    )
    assert [isinstance(result, ValueError) for result in results] == [0, 1, 0, 1, 0]
    assert "over the context of 64" in str(results[1])
    assert "token id 9999" in str(results[3])
    assert sorted(index for index, _ in arrived) == [0, 2, 4]
    for index, result in arrived:
        assert result is results[index]
        assert len(result.texts) == 3
        assert result.usage.generated_tokens == 30
        assert result.interrupted is False
    assert results[0].texts == tiny_engine(max_seq_len=64).solve("abc", Samples(3)).texts
    with pytest.raises(ValueError, match="over the context"):
        engine.solve("x" * 100, Samples(3))
    with pytest.raises(ValueError, match="must be a list"):
        engine.solve_many("abc", Samples(3))
    assert engine.solve_many([], Samples(3)) == []
    assert_idle(engine)


def test_a_method_that_can_not_even_begin(engine):
    class Broken(Samples):
        def program(self, question):
            if question == "b":
                raise Trouble("no generator")
            return super().program(question)

    results = engine.solve_many(["a", "b", "c"], Broken(2))
    assert isinstance(results[1], Trouble)
    assert len(results[0].texts) == len(results[2].texts) == 2
    assert_idle(engine)


def test_an_exception_in_on_result_is_that_question_s_error(engine):
    def on_result(index, result):
        if index == 1:
            raise Trouble("on_result")

    results = engine.solve_many(["a", "b", "c"], Samples(2), on_result=on_result)
    assert [isinstance(result, Trouble) for result in results] == [False, True, False]
    assert_idle(engine)


def test_solve_with_a_budget(engine):
    result = engine.solve("abc", Samples(4, max_tokens=50), budget=Budget(tokens=30))
    assert result.usage.generated_tokens == 30
    full = tiny_engine().solve("abc", Samples(4, max_tokens=50))
    for text, whole in zip(result.texts, full.texts, strict=True):
        assert whole.startswith(text)
    assert_idle(engine)


# ---- Ctrl-C ----


def test_ctrl_c_ends_sampling_and_keeps_what_is_there(engine):
    """Every question concludes with what it has; blocks return."""
    drawn = []

    def on_token(branch, token):
        drawn.append(token)
        if len(drawn) == 50:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    results = engine.solve_many(["abc", "defg"], Samples(4, max_tokens=200, on_token=on_token))
    assert signal.getsignal(signal.SIGINT) is before
    assert [result.interrupted for result in results] == [True, True]
    full = tiny_engine().solve_many(["abc", "defg"], Samples(4, max_tokens=200))
    for result, whole in zip(results, full, strict=True):
        assert 0 < result.usage.generated_tokens < 60
        for text, complete in zip(result.texts, whole.texts, strict=True):
            assert complete.startswith(text)
    assert_idle(engine)


def test_ctrl_c_before_a_question_began_fails_it():
    """Pre-filling goes on to its end; a question that comes after it does not begin."""
    engine = tiny_engine()

    def late():
        root = yield Prefill("abc")
        yield Extend([root], decoding(100), on_token=lambda *_: signal.raise_signal(signal.SIGINT))
        yield Prefill("def")

    with pytest.raises(KeyboardInterrupt):
        engine.run_program(late())
    assert_idle(engine)


def test_a_second_ctrl_c_ends_the_run_at_once(engine):
    def on_token(branch, token):
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        engine.solve_many(["abc", "defg"], Samples(4, max_tokens=200, on_token=on_token))
    assert signal.getsignal(signal.SIGINT) is before
    assert_idle(engine)


def test_a_real_ctrl_c():
    script = """
        import json, sys
        from tests.test_scheduler import Samples
        from tests.tiny_model import tiny_engine
        engine = tiny_engine(max_seq_len=100_000, kv_tokens=400_000)
        said = []
        def on_token(branch, token):
            if not said:
                said.append(1)
                print("running", flush=True)
        method = Samples(4, max_tokens=90_000, on_token=on_token)
        results = engine.solve_many(["abc", "defg"], method)
        print(json.dumps({
            "interrupted": [result.interrupted for result in results],
            "tokens": [result.usage.generated_tokens for result in results],
            "blocks": engine.blocks_in_use,
        }))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=40)
    finally:
        process.kill()
    report = json.loads(output)
    assert report["interrupted"] == [True, True]
    assert report["blocks"] == 0
    assert all(0 < tokens < 4 * 90_000 for tokens in report["tokens"])
    assert process.returncode == 0


def test_the_engine_runs_outside_of_the_main_thread(engine):
    results = []
    thread = threading.Thread(target=lambda: results.append(engine.solve("abc", Samples(3))))
    thread.start()
    thread.join(30)
    assert results[0].texts == tiny_engine().solve("abc", Samples(3)).texts
    assert_idle(engine)


# ---- engine options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "device 'cuda': this torch"),
        ({"backend": "x"}, "x"),
        ({"isa": "sse"}, "sse"),
        (
            {"dtype": "int3"},
            "dtype must be one of float32, bfloat16, float16, int8, int4, got 'int3'",
        ),
        ({"threads": -1}, "-1"),
        ({"threads": 0}, "0"),
        ({"kv_tokens": BLOCK_SIZE - 1}, f"one block of {BLOCK_SIZE}, got {BLOCK_SIZE - 1}"),
        ({"max_seq_len": 0}, "max_seq_len must be at least 1, got 0"),
        ({"max_seq_len": -5}, "max_seq_len must be at least 1, got -5"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_engine(**options)
