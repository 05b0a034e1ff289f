"""Random programs and small pools, with guesses and without: nobody's output tells the difference.

Programs do nothing that depends on which of two branches is quicker: no `FirstOf`, no message to
another branch that is being sampled, no budget of several branches, no operation on a branch that
may or may not be running still.
"""

import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode.engine import Branch, Engine, Extend, Program, SamplingParams, Score
from parallel_decode.kernels import BLOCK_SIZE
from tests.guesses import GUESSERS, Guesser, Listener, Said, guessers
from tests.test_preemption import KINDS, RandomProgram, assert_clean
from tests.tiny_model import tiny_checkpoint, tiny_engine

WINDOWED = tiny_checkpoint(
    architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=20
)


class TalkingProgram(RandomProgram):
    """Its branches tell themselves something, stop or go away in the middle of their sampling."""

    def __init__(self, seed: int, joins: bool) -> None:
        super().__init__(seed, joins)
        self.engine: Engine | None = None
        self.named: set[int] = set()

    def steps(self):
        program = super().steps()
        resume = functools.partial(program.send, None)
        while True:
            self.named.clear()
            try:
                request = resume()
            except StopIteration as end:
                return end.value
            try:
                resume = functools.partial(program.send, (yield request))
            except ValueError as error:
                resume = functools.partial(program.throw, error)

    def operation(self, live: list[Branch]):
        """On branches that no other operation of the batch names."""
        free = [branch for branch in live if id(branch) not in self.named]
        if not free:
            return Score([])
        operation = self.extend(free) if self.rng.random() < 0.4 else super().operation(free)
        named = getattr(operation, "branches", [])
        named = [*named, *(getattr(operation, name, None) for name in ("branch", "parent"))]
        self.named.update(map(id, named))
        return operation

    def extend(self, free: list[Branch]):
        chosen = self.rng.sample(free, self.rng.randint(1, len(free)))
        ready = [branch for branch in chosen if branch.num_tokens > branch.join_length]
        if not ready:
            return Score([])
        return Extend(ready, self.params(), on_token=self.listener())

    def params(self) -> SamplingParams:
        rng = self.rng
        return SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 5]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            stop_tokens=rng.choice([(), (3, 4, 5)]),
            max_tokens=rng.randint(1, 20),
            ignore_eos=rng.random() < 0.5,
        )

    def listener(self):
        number, action = self.rng.randint(1, 9), self.rng.choice(["tell", "tell after", "abort"])
        heard: dict[tuple, int] = {}

        def on_token(branch: Branch, token: int) -> None:
            heard[branch.path] = heard.get(branch.path, 0) + 1
            if heard[branch.path] != number:
                return
            if action == "abort":
                self.engine.abort(branch)
            else:
                self.engine.broadcast(branch, [4, 5], after=None if action == "tell" else "a")

        return on_token


def run(
    seed: int, joins: bool, speculator: Listener | None, count: int = 10, **options
) -> tuple[list, Engine]:
    engine = tiny_engine(**options)
    engine.speculator = speculator
    talking = [TalkingProgram(seed + i, joins) for i in range(count)]
    for program in talking:
        program.engine = engine
    running = [engine.submit(program.steps()) for program in talking]
    engine.wait(running)
    for program in running:
        if program.error is not None:
            raise program.error
    assert_clean(engine)
    return [program.result for program in running], engine


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(GUESSERS), st.sampled_from([None, 20]))
def test_random_programs_give_the_same_with_any_guesses(seed, joins, kind, window):
    """In a big pool, in a small one and in small steps. Joined keys can't be given up."""
    checkpoint = tiny_checkpoint() if window is None else WINDOWED
    listener = Listener()
    plain, _ = run(seed, joins, listener, checkpoint=checkpoint)
    for num_blocks, max_batch_tokens in [(1000, 1024), (1000, 12), (40, 1024)]:
        if joins and num_blocks < 1000:
            continue
        speculated, _ = run(
            *(seed, joins, guessers(listener.said)[kind]),
            checkpoint=checkpoint,
            kv_tokens=num_blocks * BLOCK_SIZE,
            max_batch_tokens=max_batch_tokens,
        )
        for theirs, mine in zip(plain, speculated, strict=True):
            assert mine == theirs


# ---- small pools ----


def questions(name: str, speculator: Listener | None, **options) -> tuple[Engine, list[Program]]:
    engine = tiny_engine(**options)
    engine.speculator = speculator
    programs = [engine.submit(KINDS[name](seed)) for seed in range(8)]
    engine.wait(programs)
    for program in programs:
        if program.error is not None:
            raise program.error
    return engine, programs


@functools.cache
def expected(name: str) -> tuple[list, Said]:
    listener = Listener()
    _, programs = questions(name, listener, kv_tokens=16384)
    return [program.result for program in programs], listener.said


@pytest.mark.parametrize("kind", GUESSERS)
@pytest.mark.parametrize("num_blocks", [20, 30, 60])
@pytest.mark.parametrize("name", ["sample", "search", "scored", "joined_text"])
def test_same_outputs_as_in_a_big_pool(name, num_blocks, kind):
    results, said = expected(name)
    engine, programs = questions(name, guessers(said)[kind], kv_tokens=num_blocks * BLOCK_SIZE)
    assert [program.result for program in programs] == results
    if num_blocks == 20:
        assert engine.usage.preemptions > 0
    assert_clean(engine)


@pytest.mark.parametrize("num_blocks", [20, 30, 60])
@pytest.mark.parametrize("name", ["sample", "search", "scored", "joined_text"])
def test_drafts_put_nobody_out(name, num_blocks):
    """They take blocks that are free, and give them back at once: with drafts that are never right
    the pool is as full, step by step, as without."""
    _, said = expected(name)
    held: list[list[int]] = []
    usages = []
    for speculator in (None, guessers(said)["always wrong"]):
        engine = tiny_engine(kv_tokens=num_blocks * BLOCK_SIZE)
        engine.speculator = speculator
        held.append([])
        engine.observe(lambda _, engine=engine: held[-1].append(engine.blocks_in_use))
        programs = [engine.submit(KINDS[name](seed)) for seed in range(8)]
        engine.wait(programs)
        usages.append(engine.usage)
    assert held[0] == held[1]
    assert usages[0].preemptions == usages[1].preemptions
    assert usages[0].peak_blocks == usages[1].peak_blocks
    assert usages[1].drafted_tokens > 0


def test_idle_prefixes_are_not_evicted_for_drafts():
    engine = tiny_engine(kv_tokens=20 * BLOCK_SIZE)
    for seed in range(4):
        engine.prune(engine.prefill(random.Random(seed).choices(range(40), k=65)))
    root = engine.prefill(list(range(20)))
    cached = engine.blocks_cached
    engine.speculator = Guesser(num_nodes=60)

    def on_token(branch: Branch, token: int) -> None:
        if branch.num_sampled == 9:
            engine.abort(branch)

    engine.extend(root, SamplingParams(max_tokens=200, ignore_eos=True), on_token=on_token)
    assert engine.blocks_cached == cached
    assert engine.cache.pool.num_free < 4  # or there would have been room for 60 more tokens
    assert engine.usage.drafted_tokens == 0
