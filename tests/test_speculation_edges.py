"""Drafts at the ends of contexts and steps, and among messages and budgets."""

import pytest

from parallel_decode.engine import (
    Branch,
    Budget,
    Engine,
    Extend,
    Fork,
    Prefill,
    SamplingParams,
)
from tests.guesses import GUESSERS, Guesser, Listener, guessers
from tests.test_scheduler import decoding
from tests.test_speculation import state, token_ids
from tests.tiny_model import tiny_checkpoint, tiny_engine


def three(engine: Engine, seed: int = 0) -> list[Branch]:
    return engine.fork(engine.prefill(token_ids(20, seed)), 3)


def both(drive, kind: str = "partly wrong, among decoys", **options) -> tuple:
    """What `drive(engine)` gives without and with speculation."""
    engine = tiny_engine(**options)
    engine.speculator = listener = Listener()
    plain = drive(engine)
    engine = tiny_engine(**options)
    engine.speculator = guessers(listener.said)[kind]
    return plain, drive(engine), engine


# ---- contexts and steps ----


@pytest.mark.parametrize("kind", GUESSERS)
@pytest.mark.parametrize("max_seq_len", [21, 22, 30, 47])
def test_a_context_that_ends(kind, max_seq_len):
    def drive(engine):
        kids = three(engine)
        engine.extend(kids, decoding(60))
        assert {kid.finish_reason for kid in kids} == {"length"}
        return list(map(state, kids))

    plain, speculated, _ = both(drive, kind, max_seq_len=max_seq_len)
    assert plain == speculated


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 3, 4, 9, 30])
def test_small_steps_have_little_room_for_drafts(max_batch_tokens):
    rows = []

    def drive(engine):
        kids = three(engine)
        engine.observe(lambda stats: rows.append(stats.num_tokens))
        engine.extend(kids, decoding(20))
        return list(map(state, kids))

    plain, speculated, engine = both(drive, max_batch_tokens=max_batch_tokens)
    assert plain == speculated
    assert max(rows) <= max_batch_tokens
    if max_batch_tokens in (1, 3):  # of three branches or one, there is no room beside
        assert engine.speculator.num_drafted == 0
    elif max_batch_tokens > 3:
        assert engine.speculator.num_drafted > 0


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 5])
def test_a_step_is_learnt_from_where_the_speculator_was_asked(max_batch_tokens):
    calls = []

    class Noting(Guesser):
        def draft(self, requests, num_rows, max_nodes):
            calls.append([request.branch for request in requests])
            return super().draft(requests, num_rows, max_nodes)

        def learn(self, verified, num_rows, seconds):
            assert calls.pop() == [entry.branch for entry in verified]
            assert not calls

    engine = tiny_engine(max_batch_tokens=max_batch_tokens)
    engine.speculator = Noting(num_nodes=2)
    engine.extend(three(engine), decoding(20))
    assert not calls


@pytest.mark.parametrize("kind", GUESSERS)
def test_tokens_in_front_of_a_draft_in_the_same_step(kind):
    """A mask has 64 bits: what the branch was told takes its share."""

    def drive(engine):
        states = []
        for count in (2, 30, 62, 63, 64, 90):
            kids = three(engine)
            engine.extend(kids, decoding(20), tokens=token_ids(count))
            states += map(state, kids)
        return states

    plain, speculated, _ = both(drive, kind)
    assert plain == speculated


@pytest.mark.parametrize("kind", GUESSERS)
@pytest.mark.parametrize("window", [5, 16, 33])
def test_sliding_windows(kind, window):
    checkpoint = tiny_checkpoint(
        architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=window
    )

    def drive(engine):
        kids = three(engine)
        engine.extend(kids, decoding(50))
        return list(map(state, kids))

    plain, speculated, _ = both(drive, kind, checkpoint=checkpoint)
    assert plain == speculated


@pytest.mark.parametrize("kind", GUESSERS)
@pytest.mark.parametrize("positions", ["promised", "disjoint_ranges"])
def test_ranges_of_positions(kind, positions):
    """Also from the fork on, where the position of the next token is not the next position."""

    def drive(engine):
        root = engine.prefill(token_ids(20))
        kids = engine.fork(root, 3, positions=positions, lengths=[40, 40, 40])
        states = []
        for _ in range(2):
            engine.extend(kids, decoding(15))
            states += map(state, kids)
            for kid in kids:
                engine.rollback(kid, 20)
        engine.extend(kids, decoding(15))
        joined = engine.join(root, kids, "kv_union", positions=positions)
        engine.extend(joined, decoding(15), tokens=[1, 2])
        again = engine.join(root, kids, "kv_concat")
        engine.extend(again, decoding(15), tokens=[1, 2])
        engine.rollback(joined, joined.num_tokens - 9)
        engine.extend(joined, decoding(15))
        return [*states, *map(state, [*kids, joined, again])]

    plain, speculated, _ = both(drive, kind)
    assert plain == speculated


def test_greedy_tokens_of_the_reference_backend():
    """Sums over a draft's keys are in another order there: equal up to rounding."""

    def drive(engine):
        kids = engine.fork(engine.prefill(token_ids(20)), 2)
        engine.extend(kids, SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
        return [(kid.tokens, kid.num_stored) for kid in kids]

    for kind in ("right", "right, among decoys", "partly wrong, among decoys", "always wrong"):
        plain, speculated, _ = both(drive, kind, backend="reference")
        assert plain == speculated


# ---- messages, ends and budgets ----


@pytest.mark.parametrize("after", [None, "a", "e"])
@pytest.mark.parametrize("kind", GUESSERS)
def test_messages_from_on_token(kind, after):
    """A branch that tells itself something hears it at the same place."""

    def drive(engine):
        kids = three(engine)

        def on_token(branch, token):
            if branch.num_sampled % 5 == 2:
                engine.broadcast(branch, [4, 5], after=after)

        engine.extend(kids, decoding(30), on_token=on_token)
        return list(map(state, kids))

    plain, speculated, _ = both(drive, kind)
    assert plain == speculated
    if after is None:
        assert all(tokens.count(4) >= 5 for _, tokens, *_ in plain)


@pytest.mark.parametrize("end", ["abort", "prune"])
@pytest.mark.parametrize("kind", GUESSERS)
def test_ends_from_on_token(kind, end):
    def drive(engine):
        kids = three(engine)
        heard = []

        def on_token(branch, token):
            heard.append((branch.path, token))
            if branch.num_sampled == 3 + branch.path[-1]:
                getattr(engine, end)(branch)

        engine.extend(kids, decoding(30), on_token=on_token)
        assert [kid.num_sampled for kid in kids] == [3, 4, 5]
        return list(map(state, kids)), sorted(heard)

    plain, speculated, _engine = both(drive, kind)
    assert plain == speculated


@pytest.mark.parametrize("kind", GUESSERS)
def test_a_budget_of_tokens_is_exact(kind):
    """Who of several branches gets the last of them depends on who was quick."""

    def program(num_branches):
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, num_branches)
        yield Extend(kids, decoding(12))
        return kids

    def drive(engine):
        results = []
        for tokens in (0, 1, 2, 7, 11, 12):
            running = engine.submit(program(1), budget=Budget(tokens=tokens), keep=True)
            engine.wait([running])
            assert running.usage.generated_tokens == tokens
            [kid] = running.result
            results.append((kid.tokens, list(map(str, kid.records)), kid.finish_reason))
        return results

    plain, speculated, engine = both(drive, kind)
    assert plain == speculated
    whole = [kid.tokens for kid in engine.run_program(program(4))]
    for tokens in (0, 1, 5, 30):
        running = engine.submit(program(4), budget=Budget(tokens=tokens))
        engine.wait([running])
        assert sum(kid.num_sampled for kid in running.result) == tokens
        assert {kid.finish_reason for kid in running.result} <= {"budget", "length"}
        for kid, full in zip(running.result, whole, strict=True):
            assert kid.tokens == full[: kid.num_tokens]


def test_a_budget_of_steps_buys_more():
    def program():
        root = yield Prefill(token_ids(20))
        yield Extend([root], decoding(40))
        return root

    def drive(engine):
        running = engine.submit(program(), budget=Budget(steps=5))
        engine.wait([running])
        assert running.usage.forward_steps == 5
        return running.result.output_tokens

    engine = tiny_engine()
    engine.speculator = listener = Listener()
    whole = engine.run_program(program()).output_tokens
    assert drive(engine) == whole[:4]
    engine.speculator = Guesser(listener.said, num_nodes=3)
    # A step with a draft draws at once, and not when the next one begins.
    assert drive(engine) == whole[:17]


def test_turning_speculation_on_and_off_in_the_middle():
    def drive(engine):
        kids = three(engine)
        speculator = engine.speculator

        def on_token(branch, token):
            engine.speculator = speculator if branch.num_sampled % 7 < 4 else None

        engine.extend(kids, decoding(40), on_token=on_token)
        return list(map(state, kids))

    plain, speculated, engine = both(drive)
    assert plain == speculated
    assert engine.usage.accepted_tokens > 0
