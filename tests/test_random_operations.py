"""Random sequences of operations: no block is lost or freed twice, and no answer changes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from parallel_decode import _C
from parallel_decode.engine import Branch, Engine, PoolExhausted, SamplingParams, Swap
from parallel_decode.kernels import BLOCK_SIZE
from tests.tiny_model import TEXT, next_logits, plain_logits, tiny_engine

# Few texts, so that prompts meet each other in the prefix tree.
PROMPTS = st.builds(
    lambda seed, length: random.Random(seed).choices(range(len(TEXT)), k=length),
    st.integers(0, 2),
    st.sampled_from([1, 5, 15, 16, 17, 31, 32, 33, 50]),
)
TOKENS = st.lists(st.integers(0, len(TEXT) - 1), min_size=1, max_size=20)
SHARE = st.floats(0, 1)
PICKS = st.integers(0, 999)


def references(engine: Engine, branches: list[Branch]) -> Counter[int]:
    """How many holders each block has: entries of live branches' tables, and the prefix tree."""
    holders: Counter[int] = Counter()
    for branch in branches:
        holders.update(entry[0] for entry in branch.table.entries().tolist())
    holders.update(node.block for node in engine._tree._nodes() if node.block is not None)
    return holders


class EngineMachine(RuleBasedStateMachine):
    """The engine against a list of tokens a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = tiny_engine(kv_tokens=24 * BLOCK_SIZE, max_batch_tokens=24)
        self.live: list[Branch] = []
        self.tokens: dict[int, list[int]] = {}
        self.sampled = 0

    def know(self, branch: Branch, tokens: list[int]) -> None:
        self.live.append(branch)
        self.tokens[id(branch)] = tokens

    def forget(self, branch: Branch) -> None:
        self.engine.prune(branch)
        self.live.remove(branch)
        assert branch.num_stored == 0

    def pick(self, number: int) -> Branch:
        return self.live[number % len(self.live)]

    def attempt(self, operation: Callable[[], Any]) -> Any:
        """The pool is small: what does not fit must fail as a whole and leave everything usable."""
        try:
            return operation()
        except PoolExhausted:
            return None
        except ValueError as error:
            # Branches whose blocks the failed step took, and which text can't bring back.
            allowed = ("was released", "was joined", "over the context")
            assert any(why in str(error) for why in allowed), error
            return None

    @initialize(prompt=PROMPTS)
    def first_prompt(self, prompt):
        self.know(self.engine.prefill(prompt), prompt)

    @precondition(lambda self: len(self.live) < 16)
    @rule(prompt=PROMPTS)
    def prefill(self, prompt):
        branch = self.attempt(lambda: self.engine.prefill(prompt))
        if branch is not None:
            self.know(branch, prompt)

    @precondition(lambda self: self.live)
    @rule(number=PICKS, tokens=TOKENS, logprobs=st.booleans())
    def append(self, number, tokens, logprobs):
        branch = self.pick(number)
        before = branch.tokens
        self.attempt(lambda: self.engine.extend(branch, tokens=tokens, logprobs=logprobs))
        # Where the pool was too small to compute them, the tokens are there and pending.
        assert branch.tokens in (before, before + tokens)
        self.tokens[id(branch)] = branch.tokens

    @precondition(lambda self: self.live)
    @rule(number=PICKS, more=PICKS, count=st.integers(1, 9))
    def sample(self, number, more, count):
        branches = list({id(b): b for b in (self.pick(number), self.pick(more))}.values())
        before = sum(branch.num_sampled for branch in branches)
        self.attempt(
            lambda: self.engine.extend(branches, SamplingParams(max_tokens=count, ignore_eos=True))
        )
        self.sampled += sum(branch.num_sampled for branch in branches) - before
        for branch in branches:
            tokens = self.tokens[id(branch)]
            assert branch.tokens[: len(tokens)] == tokens
            self.tokens[id(branch)] = branch.tokens

    @precondition(lambda self: self.live)
    @rule(number=PICKS, tokens=TOKENS)
    def broadcast(self, number, tokens):
        branch = self.pick(number)
        before = branch.tokens
        self.attempt(lambda: self.engine.broadcast(branch, tokens))
        assert branch.tokens in (before, before + tokens)
        self.tokens[id(branch)] = branch.tokens

    @precondition(lambda self: 0 < len(self.live) < 24)
    @rule(number=PICKS, where=SHARE, ranges=st.booleans())
    def fork(self, number, where, ranges):
        branch = self.pick(number)
        at = max(1, branch.join_length, round(where * branch.num_tokens))
        options = {"positions": "disjoint_ranges", "lengths": [30]} if ranges else {}
        kids = self.attempt(lambda: self.engine.fork(branch, 2, at=at, **options))
        for kid in kids or []:
            self.know(kid, self.tokens[id(branch)][:at])

    @precondition(lambda self: self.live)
    @rule(number=PICKS, where=SHARE)
    def rollback(self, number, where):
        branch = self.pick(number)
        to = max(1, branch.join_length, round(where * branch.num_tokens))
        if self.attempt(lambda: self.engine.rollback(branch, to)):
            self.tokens[id(branch)] = self.tokens[id(branch)][:to]

    @precondition(lambda self: self.live)
    @rule(number=PICKS)
    def swap(self, number):
        branch = self.pick(number)
        blocks, stored, away = self.engine.blocks_in_use, branch.num_stored, branch.away
        counts = self.attempt(lambda: self.engine.run(Swap([branch])))
        if counts and counts[0] and away is None:
            assert branch.num_stored == stored - counts[0]
            assert self.engine.blocks_in_use == blocks - len(branch.away.entries)

    @precondition(lambda self: self.live)
    @rule(number=PICKS)
    def prune(self, number):
        self.forget(self.pick(number))

    @precondition(lambda self: self.live)
    @rule(number=PICKS, continuation=st.one_of(st.just([]), TOKENS))
    def score(self, number, continuation):
        branch = self.pick(number)
        self.attempt(lambda: self.engine.broadcast(branch, []))  # it is here, if there is room
        blocks = self.engine.blocks_in_use
        entries = branch.table.entries().tolist()
        self.attempt(lambda: self.engine.score(branch, continuation, lambda h: h.sum(-1)))
        assert self.engine.blocks_in_use == blocks
        assert branch.table.entries().tolist() == entries

    def families(self) -> list[tuple[Branch, list[Branch]]]:
        """Live branches that have live forks from their end."""
        families = []
        for parent in self.live:
            kids = [
                kid
                for kid in self.live
                if kid.parent is parent
                and kid.fork_length == parent.num_tokens
                and kid.tokens[: kid.fork_length] == parent.tokens
            ]
            if kids:
                families.append((parent, kids[:3]))
        return families

    @precondition(lambda self: self.families())
    @rule(
        number=PICKS,
        mode=st.sampled_from(["text", "kv_union", "kv_concat", "thought_embed"]),
        drop=st.booleans(),
    )
    def join(self, number, mode, drop):
        families = self.families()
        parent, kids = families[number % len(families)]
        own = [t for kid in kids for t in self.tokens[id(kid)][parent.num_tokens :]]
        if mode == "text" and not own:
            return
        options = {}
        if mode == "thought_embed":
            options = {"positions": mode, "embeddings": torch.randn(len(kids), 2, 16)}
            mode = "kv_union"
        joined = self.attempt(lambda: self.engine.join(parent, kids, mode, **options))
        if joined is None:
            return
        self.know(joined, self.tokens[id(parent)] + own)
        for kid in kids if drop else []:
            self.forget(kid)

    @precondition(lambda self: self.live)
    @rule(number=PICKS)
    def logits_are_those_of_a_fresh_prefill(self, number):
        branch = self.pick(number)
        if branch.recomputable:
            logits = self.attempt(lambda: next_logits(self.engine, branch))
            if logits is not None:
                assert torch.equal(logits, plain_logits(branch.tokens))

    @rule()
    def clear(self):
        self.engine.clear_prefixes()
        assert self.engine.blocks_cached == 0

    @rule(prompt=PROMPTS)
    def pin(self, prompt):
        if self.attempt(lambda: self.engine.pin(prompt)) is not None:
            self.engine.unpin(prompt)

    @invariant()
    def tokens_are_kept(self):
        for branch in self.live:
            assert branch.tokens == self.tokens[id(branch)]
            assert len(branch.records) == len(branch.output_tokens)
            assert branch.num_stored <= branch.num_tokens

    @invariant()
    def every_block_has_its_holders(self):
        pool = self.engine.cache.pool
        holders = references(self.engine, self.live)
        for block in range(pool.num_blocks):
            assert pool.ref_count(block) == holders[block]
        assert pool.num_blocks - pool.num_free == len(holders)
        in_branches = {e[0] for b in self.live for e in b.table.entries().tolist()}
        assert self.engine.blocks_in_use == len(in_branches)
        assert self.engine.blocks_cached == len(holders) - len(in_branches)

    @invariant()
    def nothing_runs(self):
        assert not self.engine._primitives.running
        assert not self.engine._scheduler._finishers
        assert not self.engine._scheduler._queue
        assert self.engine.usage.generated_tokens == self.sampled

    def teardown(self):
        self.engine.prune(self.live)
        assert self.engine.blocks_in_use == 0
        self.engine.clear_prefixes()
        assert self.engine.cache.num_used == 0


EngineMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50)
TestEngine = EngineMachine.TestCase


# ---- tables over a pool, without an engine ----


class TableMachine(RuleBasedStateMachine):
    """`BlockTable` against a list of (content, position read) a table, written slot by slot."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = _C.BlockPool(12)
        self.slots: dict[int, int] = {}  # slot -> what was last written there
        self.live: list[tuple[_C.BlockTable, list[tuple[int, int]]]] = []
        self.written = 0

    @rule(target=tables)
    def new(self):
        entry = (_C.BlockTable(self.pool), [])
        self.live.append(entry)
        return entry

    @rule(table=tables, count=st.integers(1, 40), jump=st.sampled_from([0, 0, 0, 5]))
    def append(self, table, count, jump):
        if table not in self.live:
            return
        native, model = table
        position = (model[-1][1] + 1 if model else 0) + jump
        self.grow([(native, model, count, position)])

    @rule(first=tables, second=tables, counts=st.tuples(st.integers(1, 20), st.integers(1, 20)))
    def append_both(self, first, second, counts):
        """Two that share their last block grow in the same step."""
        if first in self.live and second in self.live and first is not second:
            self.grow(
                [
                    (native, model, count, model[-1][1] + 1 if model else 0)
                    for (native, model), count in zip((first, second), counts, strict=True)
                ]
            )

    def grow(self, requests):
        natives = [native for native, _, _, _ in requests]
        counts = np.array([count for _, _, count, _ in requests], np.int32)
        positions = np.array([position for _, _, _, position in requests], np.int32)
        free = self.pool.num_free
        needed = _C.blocks_needed(natives, counts, positions)
        if needed > free:
            before = [native.entries().tolist() for native in natives]
            with pytest.raises(ValueError, match="free blocks"):
                _C.append_tokens(natives, counts, positions)
            assert [native.entries().tolist() for native in natives] == before
            assert self.pool.num_free == free
            return
        slots, copies = _C.append_tokens(natives, counts, positions)
        assert free - self.pool.num_free <= needed
        for source, target in copies:
            for lane in range(BLOCK_SIZE):
                value = self.slots.get(source * BLOCK_SIZE + lane, -1)
                self.slots[target * BLOCK_SIZE + lane] = value
        slots = slots.tolist()
        assert len(set(slots)) == len(slots)
        for _, model, count, position in requests:
            for number in range(count):
                self.written += 1
                self.slots[slots.pop(0)] = self.written
                model.append((self.written, position + number))

    @rule(target=tables, table=tables)
    def fork(self, table):
        if table not in self.live:
            return (None, None)
        entry = (table[0].fork(), list(table[1]))
        self.live.append(entry)
        return entry

    @rule(table=tables, share=SHARE)
    def truncate(self, table, share):
        if table in self.live:
            native, model = table
            keep = round(share * len(model))
            native.truncate(keep)
            del model[keep:]

    @rule(table=tables, other=tables, span=st.tuples(SHARE, SHARE), offset=st.integers(-5, 9))
    def append_view(self, table, other, span, offset):
        if table in self.live and other in self.live and len(table[1]) < 300:
            begin, end = sorted(round(x * len(other[1])) for x in span)
            seen = other[1][begin:end]
            table[0].append_view(other[0], begin, end, offset)
            table[1].extend((value, position + offset) for value, position in seen)

    @rule(table=tables, share=SHARE)
    def make_private(self, table, share):
        if table not in self.live:
            return
        native, free = table[0], self.pool.num_free
        entries = native.entries().tolist()
        first = round(share * len(entries))
        # Of several entries in one block the last one to be looked at may keep it.
        shared = [b for b, *_ in entries[first:] if self.pool.ref_count(b) > 1]
        if len(shared) > free:
            with pytest.raises(ValueError, match="free blocks"):
                native.make_private(first)
            assert native.entries().tolist() == entries
            assert self.pool.num_free == free
            return
        for source, target in native.make_private(first):
            for lane in range(BLOCK_SIZE):
                value = self.slots.get(source * BLOCK_SIZE + lane, -1)
                self.slots[target * BLOCK_SIZE + lane] = value
        for block, *_ in native.entries().tolist()[first:]:
            assert self.pool.ref_count(block) == 1

    @rule(table=consumes(tables))
    def drop(self, table):
        if table in self.live:
            self.live.remove(table)
            table[0].truncate(0)

    @invariant()
    def tables_hold_what_was_written(self):
        for native, model in self.live:
            assert native.num_tokens == len(model)
            read = [
                (self.slots[block * BLOCK_SIZE + lane], position + lane - start)
                for block, start, stop, _, position in native.entries().tolist()
                for lane in range(start, stop)
            ]
            assert read == model

    @invariant()
    def blocks_are_counted(self):
        holders = Counter(e[0] for native, _ in self.live for e in native.entries().tolist())
        for block in range(self.pool.num_blocks):
            assert self.pool.ref_count(block) == holders[block]
        assert self.pool.num_free == self.pool.num_blocks - len(holders)

    def teardown(self):
        for native, _ in self.live:
            native.truncate(0)
        assert self.pool.num_free == self.pool.num_blocks


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestTables = TableMachine.TestCase


# ---- the classes alone ----


def test_a_block_can_not_be_freed_twice_or_shared_when_free():
    pool = _C.BlockPool(2)
    table = _C.BlockTable(pool)
    _C.append_tokens([table], [1], [0])
    block = int(table.entries()[0][0])
    assert (pool.num_free, pool.ref_count(block)) == (1, 1)
    pool.add_reference(block)
    pool.drop_reference(block)
    table.truncate(0)
    for misuse in (pool.drop_reference, pool.add_reference):
        with pytest.raises(RuntimeError, match=f"block {block} is"):
            misuse(block)
    assert pool.num_free == 2
    for number in (-1, 2):
        with pytest.raises(IndexError):
            pool.ref_count(number)
        for misuse in (pool.drop_reference, pool.add_reference):
            with pytest.raises(IndexError):
                misuse(number)
        with pytest.raises(IndexError):
            pool.set_cached(number, True)


@pytest.mark.parametrize("num_blocks", [0, -3])
def test_a_pool_needs_a_block(num_blocks):
    with pytest.raises(ValueError, match=f"num_blocks must be positive, got {num_blocks}"):
        _C.BlockPool(num_blocks)


def test_a_table_that_is_dropped_gives_its_blocks_back():
    pool = _C.BlockPool(3)
    table = _C.BlockTable(pool)
    _C.append_tokens([table], [20], [0])
    fork = table.fork()
    del table
    assert pool.num_free == 1
    del fork
    assert pool.num_free == 3


def test_a_pool_lives_as_long_as_its_tables():
    table = _C.BlockTable(_C.BlockPool(2))
    _C.append_tokens([table], [20], [0])
    assert table.fork().num_tokens == 20


def test_growing_many_tables_is_all_or_nothing():
    pool = _C.BlockPool(3)
    tables = [_C.BlockTable(pool) for _ in range(4)]
    with pytest.raises(ValueError, match="3 free blocks, 4 are needed"):
        _C.append_tokens(tables, [1] * 4, [0] * 4)
    assert pool.num_free == 3
    assert [table.num_tokens for table in tables] == [0] * 4
    with pytest.raises(ValueError, match="one count and one position a table"):
        _C.append_tokens(tables, [1], [0])


def test_children_of_a_partial_block_copy_it_but_the_last_one():
    pool = _C.BlockPool(8)
    parent = _C.BlockTable(pool)
    _C.append_tokens([parent], [20], [0])
    kids = [parent.fork() for _ in range(3)]
    assert pool.num_free == 6
    _, copies = _C.append_tokens(kids, [1] * 3, [20] * 3)
    assert len(copies) == 3
    parent.truncate(0)
    assert pool.num_free == 4
    grandchildren = [kids[0].fork() for _ in range(2)]
    kids[0].truncate(0)
    _, copies = _C.append_tokens(grandchildren, [1] * 2, [21] * 2)
    assert len(copies) == 1
    assert {int(t.entries()[1][0]) for t in grandchildren} >= {copies[0][1]}
