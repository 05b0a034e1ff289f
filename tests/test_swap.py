"""Keys in the host's memory: they come back bit for bit, and their blocks are free meanwhile."""

from __future__ import annotations

import pytest
import torch

from parallel_decode import Branch, Extend, Fork, Join, Prefill, Prune, SamplingParams
from parallel_decode.engine import (
    Broadcast,
    PoolExhausted,
    Release,
    Rollback,
    Score,
    See,
    Swap,
)
from parallel_decode.kernels import BLOCK_SIZE
from tests.tiny_model import TEXT, next_logits, plain_logits, tiny_engine

PROMPT = [i % len(TEXT) for i in range(37)]


def drawn(n: int) -> SamplingParams:
    return SamplingParams(max_tokens=n, ignore_eos=True)


def plain():
    root = yield Prefill(PROMPT)
    kids = yield Fork(root, 3)
    return kids[0], kids


def alone():
    """No parent and no prefix tree shares what it decoded."""
    root = yield Prefill(PROMPT[:5])
    yield Extend([root], drawn(20))
    return root, [root]


def union():
    _, kids = yield from plain()
    yield Extend(kids, drawn(13))
    joined = yield Join(kids[0].parent, kids, "kv_union")
    yield Prune(kids)
    yield Extend([joined], tokens=[1, 2, 3])
    return joined, [joined]


def concat():
    _, kids = yield from plain()
    yield Extend(kids, drawn(13))
    joined = yield Join(kids[0].parent, kids[:2], "kv_concat")
    yield Prune(kids[:2])
    yield Extend([joined], tokens=[1, 2, 3])
    return joined, [joined, kids[2]]


def ranges():
    root = yield Prefill(PROMPT)
    kids = yield Fork(root, 2, positions="disjoint_ranges", lengths=[40])
    return kids[1], kids


def sees():
    root = yield Prefill(PROMPT)
    kids = yield Fork(root, 2)
    yield See(kids[0], [kids[1]])
    return kids[0], kids


FAMILIES = [plain, alone, union, concat, ranges, sees]


def continued(family, swaps: bool):
    branch, all_of_them = yield from family()
    yield Extend(all_of_them, drawn(21))
    counts = (yield Swap([branch])) if swaps else None
    if swaps:
        # Others write into the blocks meanwhile.
        other = yield Prefill(PROMPT[::-1])
        yield Extend([other], drawn(90))
        yield Prune([other])
    yield Extend([branch], drawn(19))
    kids = yield Fork(branch, 2)
    yield Extend(kids, drawn(5))
    [scored] = yield Score([branch], head=lambda hidden: hidden)
    result = [(b.tokens, b.records) for b in (branch, *kids)], scored
    return counts, result


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_it_goes_on_as_if_it_had_never_been_away(family, kv_dtype):
    engine = tiny_engine(kv_dtype=kv_dtype)
    _, (rows, hidden) = engine.run_program(continued(family, False))
    swapping = tiny_engine(kv_dtype=kv_dtype)
    [count], (same_rows, same_hidden) = swapping.run_program(continued(family, True))
    assert count > 0 and swapping.usage.swapped_tokens == count
    assert repr(rows) == repr(same_rows)  # NaN of given tokens included
    assert torch.equal(hidden, same_hidden)
    # Nothing was computed again: what was computed beside is the other branch.
    assert swapping.usage.computed_tokens == engine.usage.computed_tokens + len(PROMPT) + 89
    assert swapping.usage.forward_steps == engine.usage.forward_steps + 90
    assert swapping.blocks_in_use == 0


def test_only_what_it_holds_alone_goes():
    engine = tiny_engine()
    root = engine.prefill(PROMPT)  # 2 full blocks, and 5 tokens
    kids = engine.fork(root, 3)
    # To 67 tokens, of which 66 are stored: 3 blocks of its own each, one a copy.
    engine.extend(kids, drawn(30))
    shared = kids[0].table.entries()[:2, 0].tolist()
    before = [engine.cache.pool.ref_count(block) for block in shared]
    held = engine.blocks_in_use
    assert engine.run(Swap(kids[:2])) == [34, 34]
    assert engine.blocks_in_use == held - 2 * 3
    assert [engine.cache.pool.ref_count(block) for block in shared] == before
    assert kids[0].num_stored == 32
    assert engine.run(Swap(kids[:2])) == [34, 34]  # they are there already
    assert engine.run(Swap([engine.fork(kids[2])[0]])) == [0]  # nothing is its own
    engine.extend(kids[0], tokens=[3])
    assert engine.blocks_in_use == held - 3 and kids[0].num_stored == 68
    assert torch.equal(next_logits(engine, kids[0]), plain_logits(kids[0].tokens))
    engine.prune([root, *kids, *kids[2].children])
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda branch: Rollback(branch, 50),
        lambda branch: Rollback(branch, 20),
        lambda branch: Broadcast([branch], [1, 2]),
        lambda branch: Fork(branch, 2, at=45),
        lambda branch: Score([branch], [1, 2, 3]),
        lambda branch: Score([branch], distribution=True),
        lambda branch: Join(branch.parent, [branch], "text"),
        lambda branch: Join(branch.parent, [branch], "kv_union"),
        lambda branch: Extend([branch], tokens=[5], logprobs=True),
    ],
    ids=[
        "rollback",
        "far-rollback",
        "broadcast",
        "fork",
        "score",
        "distribution",
        "text",
        "union",
        "extend",
    ],
)
def test_every_operation_brings_it_back(change):
    said = []
    for swaps in (False, True):
        engine = tiny_engine()
        root = engine.prefill(PROMPT)
        [kid] = engine.fork(root)
        engine.extend(kid, drawn(25))
        if swaps:
            engine.run(Swap([kid]))
        result = engine.run(change(kid))
        assert kid.away is None
        made = result if isinstance(result, list) else [result]
        branches = list({id(b): b for b in (kid, *made) if isinstance(b, Branch)}.values())
        engine.extend(branches, tokens=[7, 8])
        logits = [next_logits(engine, branch) for branch in branches]
        said.append((repr(result), kid.tokens, [row.tolist() for row in logits]))
    assert repr(said[0]) == repr(said[1])


def test_they_may_end_while_they_are_away():
    engine = tiny_engine()
    root = engine.prefill(PROMPT)
    kids = engine.fork(root, 3)
    engine.extend(kids, drawn(25))
    engine.run(Swap(kids))
    engine.prune(kids[0])
    engine.run(Release([kids[1]]))
    assert kids[0].away is None and kids[1].away is None and kids[1].num_stored == 0
    assert torch.equal(next_logits(engine, kids[1]), plain_logits(kids[1].tokens))
    engine.prune([root, *kids])

    def ends():
        branch, _ = yield from alone()
        yield Swap([branch])
        return branch

    assert engine.run_program(ends()).away is None
    assert engine.blocks_in_use == 0


def test_who_may_not_go():
    engine = tiny_engine()
    root = engine.prefill(PROMPT)
    first, second = engine.fork(root, 2)
    engine.see(first, [second])
    with pytest.raises(ValueError, match="is seen by others"):
        engine.run(Swap([second]))

    def busy():
        yield [Extend([first], drawn(5)), Swap([first])]

    with pytest.raises(ValueError, match="running"):
        engine.run_program(busy(), keep=True)
    engine.prune(second)
    with pytest.raises(ValueError, match="can't go on"):
        engine.run(Swap([second]))


def test_a_full_pool_computes_them_again_and_puts_others_out():
    """The older question comes back and finds no room: the younger one is pre-empted for it."""

    def first():
        branch, _ = yield from alone()
        yield Extend([branch], drawn(60))
        yield Swap([branch])
        other = yield Prefill(PROMPT[::-1])
        yield Extend([other], drawn(40))
        yield Prune([other])
        yield Extend([branch], drawn(10))
        return branch.tokens

    def second():
        root = yield Prefill(PROMPT)
        yield Extend([root], drawn(150))
        return root.tokens

    def run(**options):
        engine = tiny_engine(**options)
        programs = [engine.submit(steps()) for steps in (first, second)]
        engine.wait(programs)
        assert engine.blocks_in_use == 0
        return engine, [program.result for program in programs]

    roomy, expected = run()
    tight, same = run(kv_tokens=15 * BLOCK_SIZE)
    assert same == expected
    assert roomy.usage.preemptions == 0 and tight.usage.preemptions > 0
    assert tight.usage.computed_tokens > roomy.usage.computed_tokens


def test_a_full_pool_and_keys_that_text_can_not_bring_back():
    engine = tiny_engine(kv_tokens=16 * BLOCK_SIZE)
    joined, _ = engine.run_program(union(), keep=True)
    expected = tiny_engine()
    same, _ = expected.run_program(union(), keep=True)
    assert engine.run(Swap([joined]))[0] > 0
    other = engine.prefill(PROMPT[::-1])
    engine.clear_prefixes()
    free = engine.cache.pool.num_free
    engine.extend(other, drawn(free * BLOCK_SIZE))
    for _ in range(2):
        with pytest.raises(PoolExhausted, match="in the host's memory"):
            engine.extend(joined, drawn(5))
        assert joined.away is not None
    engine.prune(other)
    engine.extend(joined, drawn(5))
    expected.extend(same, drawn(5))
    assert joined.tokens == same.tokens
    assert torch.equal(next_logits(engine, joined), next_logits(expected, same))


def test_what_is_attached_goes_along():
    """A drafter's keys in the same blocks; of one that has gone meanwhile nothing comes back."""
    engine = tiny_engine()
    cache = engine.cache
    mine, gone = (torch.zeros(1, 2, cache.pool.num_blocks, 8) for _ in range(2))
    cache.attached = (mine, gone)
    branch, _ = engine.run_program(alone(), keep=True)
    blocks = branch.table.entries()[:, 0].tolist()
    mine[:, :, blocks] = 7.0
    engine.run(Swap([branch]))
    mine.zero_()
    cache.attached = (mine,)
    engine.run(Extend([branch], tokens=[1]))
    assert (mine[:, :, branch.table.entries()[:, 0].tolist()] == 7).all() and not gone.any()
