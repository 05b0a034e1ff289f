"""What fails while drafts are verified fails alone, and leaves nothing behind."""

import pytest
import torch

from parallel_decode.engine import Extend, Fork, Prefill, Rollback
from parallel_decode.engine.draft_tree import MAX_NODES, DraftTree
from tests.guesses import GUESSERS, Guesser, Listener
from tests.test_scheduler import Trouble, assert_idle, decoding
from tests.test_speculation import state, token_ids
from tests.test_speculation_edges import both, three
from tests.tiny_model import TEXT, tiny_engine


@pytest.mark.parametrize("reached", [True, False], ids=["reached", "not reached"])
def test_nan_behind_a_node_fails_a_branch_that_gets_there(reached):
    """And no other. A branch that says something else, or ends before, never hears of it."""
    listener, engine = Listener(), tiny_engine()
    engine.speculator = listener
    expected = three(engine)
    engine.extend(expected, decoding(12))
    engine.speculator = Guesser(listener.said, num_nodes=6, wrong=0.0 if reached else 1.0)
    plain, calls = engine.model.logits, []

    def poisoned(hidden):
        logits = plain(hidden)
        calls.append(len(hidden))
        if len(calls) == 1:
            assert len(hidden) == 3 * 7
            logits[7 + 3, 11] = torch.nan  # behind the third node of the second branch
        return logits

    kids = three(engine)
    engine.model.logits = poisoned
    engine.extend(kids, decoding(12))
    engine.model.logits = plain
    statuses = ["live", "failed" if reached else "live", "live"]
    assert [kid.status for kid in kids] == statuses
    for kid, full in zip(kids, expected, strict=True):
        assert kid.output_tokens == full.output_tokens[: kid.num_sampled]
        assert (kid.num_sampled == 12) == (kid.status == "live")
    if reached:
        # The first token came of the prompt; the tokens of three nodes were right.
        assert (kids[1].num_sampled, kids[1].num_stored) == (1 + 3, 0)
        assert "NaN" in kids[1].error
    engine.prune([kids[0].parent, *kids, expected[0].parent, *expected])
    assert_idle(engine)


def test_a_callback_that_raises_ends_its_program_alone():
    def failing(seed):
        root = yield Prefill(token_ids(20, seed))
        kids = yield Fork(root, 3)

        def on_token(branch, token):
            if branch is kids[1] and branch.num_sampled == 5:
                raise Trouble("on_token")

        yield Extend(kids, decoding(50), on_token=on_token)

    def fine(seed):
        root = yield Prefill(token_ids(20, seed))
        kids = yield Fork(root, 2)
        yield Extend(kids, decoding(20))
        return list(map(state, kids))

    def drive(engine):
        programs = [
            *(engine.submit(failing(0)), engine.submit(fine(1), keep=True)),
            engine.submit(failing(2)),
        ]
        engine.wait(programs)
        assert [type(p.error) for p in programs] == [Trouble, type(None), Trouble]
        for name in ("drafted_tokens", "accepted_tokens", "generated_tokens"):
            of_programs = sum(getattr(p.usage, name) for p in programs)
            assert getattr(engine.usage, name) == of_programs
        return programs[1].result

    for kind in GUESSERS:
        plain, speculated, _engine = both(drive, kind)
        assert plain == speculated


def test_a_callback_that_raises_in_a_direct_call_leaves_branches_usable():
    engine = tiny_engine()
    engine.speculator = listener = Listener()
    whole = three(engine)
    engine.extend(whole, decoding(20))
    engine.speculator = Guesser(listener.said, num_nodes=12, decoys=0.3)
    kids = three(engine)

    def on_token(branch, token):
        if branch.num_sampled == 5:
            raise Trouble("on_token")

    with pytest.raises(Trouble):
        engine.extend(kids, decoding(50), on_token=on_token)
    assert [kid.num_sampled for kid in kids] == [5, 1, 1]
    for kid, full in zip(kids, whole, strict=True):
        engine.extend(kid, decoding(20 - kid.num_sampled))
        assert state(kid) == state(full)
    engine.prune([kids[0].parent, *kids, whole[0].parent, *whole])
    assert_idle(engine)


class Raising(Guesser):
    """Works until its `place` is called for the third time."""

    def __init__(self, place: str) -> None:
        super().__init__(num_nodes=5)
        original, calls = getattr(self, place), []

        def broken(*args):
            calls.append(place)
            if len(calls) == 3:
                raise Trouble(place)
            return original(*args)

        setattr(self, place, broken)


@pytest.mark.parametrize("place", ["wants_to_draft", "draft", "learn", "forget"])
def test_an_error_of_the_speculator_reaches_who_waits(place):
    """It ends the programs that are waited for, as any error of the engine does. Others, and
    branches that their user keeps, go on."""
    engine = tiny_engine()

    def program(seed, count=4):
        root = yield Prefill(token_ids(20, seed))
        kids = yield Fork(root, 3)
        for _ in range(count):
            yield Extend(kids, decoding(10))
            yield Rollback(kids[0], kids[0].num_tokens - 3)
        return [kid.tokens for kid in kids]

    expected = [engine.run_program(program(seed)) for seed in range(2)]
    kept = three(engine, seed=9)
    engine.speculator = Raising(place)
    other = engine.submit(program(1))
    with pytest.raises(Trouble, match=place):
        engine.run_program(program(0))
    engine.wait([other])
    assert other.result == expected[1]
    engine.extend(kept, decoding(5))
    engine.prune([kept[0].parent, *kept])
    engine.speculator = None
    assert_idle(engine)


def test_a_program_ends_even_if_the_speculator_can_not_forget_it():
    """Also one that ends in the middle of a step, while something of it runs."""
    engine = tiny_engine()

    class Stubborn(Guesser):
        def forget(self, branch):
            raise Trouble("forget")

    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 3)

        def on_token(branch, token):
            if branch.num_sampled == 5:
                raise Trouble("on_token")

        yield Extend(kids, decoding(50), on_token=on_token)

    engine.speculator = Stubborn()
    running = engine.submit(program())
    engine.wait([running])
    assert str(running.error) == "on_token"
    engine.speculator = None
    assert_idle(engine)


class Says(Listener):
    """Gives whatever `make(number of requests)` gives."""

    def __init__(self, make) -> None:
        super().__init__()
        self._make = make

    def draft(self, requests, num_rows, max_nodes):
        return self._make(len(requests))


VOCAB = len(TEXT) + 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda count: [DraftTree.chain([1])] * (count - 1), "2 drafts for 3 branches"),
        (lambda count: [DraftTree.chain([1])] * (count + 1), "4 drafts for 3 branches"),
        (lambda count: [], "0 drafts for 3 branches"),
        (lambda count: [DraftTree.chain([1, VOCAB])] * count, f"token {VOCAB}, .* of {VOCAB}"),
        (lambda count: [DraftTree.chain([1] * MAX_NODES)] * count, "189 nodes .* at most 97"),
    ],
    ids=["too few", "too many", "none", "large token", "too many nodes"],
)
def test_drafts_that_make_no_sense_are_named(make, message):
    engine = tiny_engine(max_batch_tokens=100)
    kids = three(engine)
    engine.extend(kids, decoding(4))
    before = engine.blocks_in_use
    engine.speculator = Says(make)
    with pytest.raises(ValueError, match=message):
        engine.extend(kids, decoding(4))
    assert engine.blocks_in_use == before
    engine.speculator = None
    engine.extend(kids, decoding(4))  # the step that failed had drawn nothing
    other = tiny_engine()
    whole = three(other)
    other.extend(whole, decoding(8))
    assert [kid.tokens for kid in kids] == [kid.tokens for kid in whole]
    engine.prune([kids[0].parent, *kids])
    assert_idle(engine)
