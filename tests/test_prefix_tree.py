"""The prefix tree alone, and the sharing that the engine finds by it."""

import random

import pytest
import torch

from parallel_decode import _C
from parallel_decode.engine import Engine, Extend, FirstOf, Fork, Prefill, Prune, SamplingParams
from parallel_decode.engine.prefix_tree import PrefixTree
from parallel_decode.kernels import BLOCK_SIZE
from tests.tiny_model import TEXT, next_logits, plain_logits, tiny_engine

SAMPLED = SamplingParams(max_tokens=12, ignore_eos=True)


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


# ---- the tree alone ----


class Owner:
    """Whoever computes a prompt: a table that grows over the pool."""

    def __init__(self, pool: _C.BlockPool, tree: PrefixTree, tokens: list[int]) -> None:
        self.tree, self.tokens = tree, tokens
        self.table = _C.BlockTable(pool)
        blocks, self.waits = tree.match(tokens, self)
        self.matched = len(blocks)
        if not self.waits:
            for index, block in enumerate(blocks):
                self.table.append_full_block(block, index * BLOCK_SIZE)
            tree.claim(tokens, self)

    def compute(self, count: int | None = None) -> None:
        begin = self.table.num_tokens
        count = len(self.tokens) - begin if count is None else count
        _C.append_tokens([self.table], [count], [begin])
        self.tree.fill(self.tokens, self.table, self)

    def drop(self) -> None:
        self.tree.abandon(self.tokens, self)
        self.table.truncate(0)


@pytest.fixture
def pool() -> _C.BlockPool:
    return _C.BlockPool(16)


@pytest.fixture
def tree(pool) -> PrefixTree:
    return PrefixTree(pool)


def test_full_blocks_are_kept_and_one_token_is_left_over(pool, tree):
    for length, kept, matched in [(15, 0, 0), (16, 1, 0), (17, 1, 1), (32, 2, 1), (40, 2, 2)]:
        first = Owner(pool, tree, token_ids(length))
        first.compute()
        first.drop()
        assert pool.num_idle == kept == pool.num_blocks - pool.num_free
        second = Owner(pool, tree, token_ids(length))
        assert (second.matched, second.waits) == (matched, False)
        second.drop()
        assert tree.evict(99) == kept
        assert pool.num_free == pool.num_blocks


def test_a_claim_makes_others_wait_until_it_is_filled(pool, tree):
    tokens = token_ids(50)
    first = Owner(pool, tree, tokens)
    assert Owner(pool, tree, tokens).waits
    assert Owner(pool, tree, tokens[:33]).waits
    assert not Owner(pool, tree, tokens[:16]).waits  # it would have to compute that block anyway
    first.compute(16)
    assert Owner(pool, tree, tokens).waits
    short = Owner(pool, tree, tokens[:20])
    assert (short.matched, short.waits) == (1, False)
    first.compute()
    second = Owner(pool, tree, tokens)
    assert (second.matched, second.waits) == (3, False)
    assert [e[0] for e in second.table.entries()] == [e[0] for e in first.table.entries()[:3]]


def test_an_abandoned_claim_lets_the_next_one_in(pool, tree):
    tokens = token_ids(50)
    first = Owner(pool, tree, tokens)
    first.compute(20)
    first.drop()
    second = Owner(pool, tree, tokens)
    assert (second.matched, second.waits) == (1, False)
    second.compute()
    assert pool.num_idle == 0
    second.drop()
    assert pool.num_idle == 3


def test_an_exact_multiple_of_the_block_beside_an_unfilled_claim(pool, tree):
    """The second owner neither waits for the last block nor takes the claim away."""
    tokens = token_ids(32)
    first = Owner(pool, tree, tokens)
    first.compute(16)
    second = Owner(pool, tree, tokens)
    assert (second.matched, second.waits) == (1, False)
    second.compute()
    longer = Owner(pool, tree, [*tokens, 1])
    assert longer.waits
    first.compute()
    longer = Owner(pool, tree, [*tokens, 1])
    assert (longer.matched, longer.waits) == (2, False)
    for owner in (first, second, longer):
        owner.drop()
    assert tree.evict(99) == 2
    assert pool.num_free == pool.num_blocks


def test_an_abandoned_claim_below_which_nobody_waits_for_ever(pool, tree):
    tokens = token_ids(32)
    first = Owner(pool, tree, tokens)
    second = Owner(pool, tree, [*tokens[:16], *token_ids(30, seed=1)])
    assert second.waits
    first.drop()
    second = Owner(pool, tree, [*tokens[:16], *token_ids(30, seed=1)])
    assert not second.waits
    second.compute()
    second.drop()
    assert tree.evict(99) == 2


def test_eviction_takes_the_least_recently_used_leaf(pool, tree):
    prompts = [token_ids(33, seed=i) for i in range(3)]
    for prompt in prompts:
        owner = Owner(pool, tree, prompt)
        owner.compute()
        owner.drop()
    assert pool.num_idle == 6
    again = Owner(pool, tree, prompts[0])
    again.drop()
    assert tree.evict(1) == 1
    assert [Owner(pool, tree, p).matched for p in (prompts[0], prompts[2])] == [2, 2]
    assert tree.match(prompts[1], None)[0] != []
    assert tree.evict(1) == 1


def test_a_block_in_use_and_what_is_above_it_stay(pool, tree):
    owner = Owner(pool, tree, token_ids(49))
    owner.compute()
    assert (tree.num_evictable(), tree.evict(99)) == (0, 0)
    owner.table.truncate(32)
    assert pool.num_idle == 1
    assert tree.num_evictable() == 1
    assert tree.evict(99) == 1
    owner.table.truncate(0)
    assert tree.num_evictable() == tree.evict(99) == 2


def test_pins_are_counted(pool, tree):
    tokens = token_ids(49)
    owner = Owner(pool, tree, tokens)
    owner.compute()
    owner.drop()
    assert tree.pin(tokens, 1) == 48
    assert tree.pin(tokens[:20], 1) == 16
    assert tree.num_evictable() == tree.evict(99) == 0
    tree.pin(tokens, -1)
    assert tree.num_evictable() == tree.evict(99) == 2
    tree.pin(tokens[:20], -1)
    tree.pin(tokens[:20], -1)  # once too often: nothing happens
    assert tree.evict(99) == 1
    assert tree.pin(tokens, 1) == 0


def test_a_partial_block_is_never_kept(pool, tree):
    """Two tables that share a block half full must not publish what one of them adds."""
    tokens = token_ids(24)
    owner = Owner(pool, tree, tokens)
    owner.compute()
    other = owner.table.fork()
    _C.append_tokens([other], [8], [24])
    tree.fill([*tokens, *token_ids(8)], other, owner)
    assert tree.match([*tokens, *token_ids(8), 1], None)[0] == [owner.table.entries()[0][0]]


# ---- through the engine ----


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


def submit_prompts(engine: Engine, prompts: list[list[int]]) -> list:
    """One program a prompt, all in the same step."""

    def program(prompt):
        root = yield Prefill(prompt)
        kids = yield Fork(root, 2)
        yield Extend(kids, SAMPLED)
        return [kid.output_tokens for kid in kids], next(iter(kids)).records

    programs = [engine.submit(program(prompt)) for prompt in prompts]
    engine.wait(programs)
    return programs


@pytest.mark.parametrize("max_batch_tokens", [7, 64, 1024])
@pytest.mark.parametrize("common", [16, 40, 64])
def test_questions_with_a_common_beginning_compute_it_once(common, max_batch_tokens):
    """All arrive in the same step: the later ones wait instead of computing it again."""
    engine = tiny_engine(max_batch_tokens=max_batch_tokens)
    prompts = [[*token_ids(common), *token_ids(10 + i, seed=i)] for i in range(4)]
    programs = submit_prompts(engine, prompts)
    shared = common // BLOCK_SIZE * BLOCK_SIZE
    for number, (program, prompt) in enumerate(zip(programs, prompts, strict=True)):
        reused = shared if number else 0
        # Each of the two children computes all but its last token.
        assert program.usage.computed_tokens == len(prompt) - reused + 2 * 11
        assert program.usage.prompt_tokens == len(prompt)
        assert program.usage.prompt_tokens_shared == reused
        assert program.usage.generated_tokens == 24
    assert engine.usage.prompt_tokens == sum(map(len, prompts))
    assert engine.usage.prompt_tokens_shared == 3 * shared
    assert engine.usage.computed_tokens == sum(p.usage.computed_tokens for p in programs)
    for program, prompt in zip(programs, prompts, strict=True):
        [alone] = submit_prompts(tiny_engine(), [prompt])
        assert alone.result == program.result


def test_the_same_question_twice_in_one_step(engine):
    for length in (40, 48):
        engine = tiny_engine()
        first, second = submit_prompts(engine, [token_ids(length)] * 2)
        assert first.result == second.result
        shared = (length - 1) // BLOCK_SIZE * BLOCK_SIZE
        assert second.usage.prompt_tokens_shared == shared
        assert second.usage.computed_tokens == length - shared + 22


def test_a_later_question_finds_what_an_earlier_one_left(engine):
    submit_prompts(engine, [token_ids(40)])
    assert engine.blocks_in_use == 0
    assert engine.blocks_cached == 2
    before = engine.usage.computed_tokens
    root = engine.prefill(token_ids(40))
    assert engine.usage.computed_tokens - before == 8
    assert torch.equal(next_logits(engine, root), plain_logits(token_ids(40)))
    assert engine.blocks_in_use == 3
    engine.prune(root)
    assert engine.clear_prefixes() == 2
    assert engine.cache.num_used == 0


@pytest.mark.parametrize("length", [16, 17, 32, 33, 47, 48])
def test_results_are_the_same_with_and_without_a_hit(engine, length):
    outputs = []
    for _ in range(3):
        root = engine.prefill(token_ids(length))
        kids = engine.fork(root, 3)
        logits = next_logits(engine, kids[0])
        engine.extend(kids, SAMPLED)
        outputs.append([kid.output_tokens for kid in kids])
        assert torch.equal(logits, plain_logits(token_ids(length)))
        engine.prune([root, *kids])
    assert outputs[0] == outputs[1] == outputs[2]
    assert engine.blocks_in_use == 0


def test_children_do_not_write_into_what_is_stored_for_others(engine):
    """The prompt's last block is full and stored; one child goes on behind it, one inside it."""
    root = engine.prefill(token_ids(32))
    kids = engine.fork(root, 2)
    engine.extend(kids, SAMPLED)
    engine.rollback(kids[0], 24)
    engine.extend(kids[0], tokens=token_ids(20, seed=1))
    engine.prune([root, *kids])
    fresh = engine.prefill([*token_ids(32), 1])
    assert engine.usage.prompt_tokens_shared == 32
    assert torch.equal(next_logits(engine, fresh), plain_logits([*token_ids(32), 1]))


def test_what_is_pinned_stays_and_what_is_not_goes_when_the_pool_is_full():
    engine = tiny_engine(kv_tokens=16 * 10)
    assert engine.pin(token_ids(40)) == 32
    assert engine.blocks_in_use == 0
    assert engine.blocks_cached == 2
    for i in range(1, 6):
        root = engine.prefill(token_ids(70, seed=i))
        assert torch.equal(next_logits(engine, root), plain_logits(token_ids(70, seed=i)))
        engine.prune(root)
    # 2 are pinned, 4 are the last prompt's, 3 of the one before did not have to go for it.
    assert engine.blocks_cached == 9
    shared = engine.usage.prompt_tokens_shared
    engine.prune(engine.prefill([*token_ids(40), 1]))
    assert engine.usage.prompt_tokens_shared - shared == 32
    engine.clear_prefixes()
    assert engine.blocks_cached == 2
    assert engine.unpin(token_ids(40)) == 32
    assert engine.clear_prefixes() == 2


def test_the_least_recently_used_prompt_goes_first():
    engine = tiny_engine(kv_tokens=16 * 7)
    for i in (1, 2, 1, 3):  # three prompts of two full blocks each, and one block to work in
        engine.prune(engine.prefill(token_ids(33, seed=i)))
    assert engine.blocks_cached == 6
    engine.prune(engine.prefill(token_ids(33, seed=4)))

    def shared(seed: int) -> int:
        before = engine.usage.prompt_tokens_shared
        engine.prune(engine.prefill(token_ids(33, seed=seed)))
        return engine.usage.prompt_tokens_shared - before

    assert [shared(i) for i in (1, 3, 4)] == [32, 32, 32]
    assert shared(2) < 32


def test_a_prompt_pruned_while_others_wait_for_it():
    """Its claim is withdrawn; one of those that waited computes the rest."""
    engine = tiny_engine(max_batch_tokens=8)
    common = token_ids(64)
    seen = []

    def first():
        root = yield Prefill([*common, 1])
        return root

    def second(token):
        root = yield Prefill([*common, token])
        [kid] = yield Fork(root)
        return kid.logits.clone()

    doomed = engine.submit(first())
    waiting = [engine.submit(second(token)) for token in (2, 3)]

    def observer(stats):
        seen.append(stats.num_tokens)
        if len(seen) == 4:
            engine.prune(doomed.branches)

    stop = engine.observe(observer)
    engine.wait([doomed, *waiting])
    stop()
    assert doomed.result.status == "pruned"
    for program, token in zip(waiting, (2, 3), strict=True):
        assert torch.equal(program.result, plain_logits([*common, token]))
    # 32 tokens were there when the first one was pruned.
    assert sum(p.usage.computed_tokens for p in waiting) == 33 + 1
    assert engine.blocks_in_use == 0
    assert engine.clear_prefixes() == 4


def test_a_program_that_ends_while_others_wait_for_its_prompt():
    engine = tiny_engine(max_batch_tokens=8)
    common = token_ids(64)

    def waiter():
        root = yield Prefill([*common, 2])
        yield Prune([root])
        return root

    def starter():
        # The prompt is on its way when the program ends by the short one's error.
        yield FirstOf([Prefill([*common, 1]), Prefill([5, 6])])
        raise KeyError("enough")

    started = engine.submit(starter())
    waiting = engine.submit(waiter())
    engine.wait([started, waiting])
    assert isinstance(started.error, KeyError)
    assert waiting.result.status == "pruned"
    assert engine.blocks_in_use == 0
