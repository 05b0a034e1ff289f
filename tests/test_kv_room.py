"""Blocks that a search gives back and computes again: the same output in less room."""

from dataclasses import replace

import pytest
import torch

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Extend, Fork, Prefill, Release, Rollback
from parallel_decode.reasoning import ABMCTS, MCTS, TreeOfThoughts
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.growth import Growth
from parallel_decode.reasoning.search.kv_room import Job
from parallel_decode.reasoning.search.node import branches_of, token_cost
from tests.search_cases import QUESTION, constant, small_engine, whole

LONG = SamplingParams(max_tokens=20, ignore_eos=True)


def by_length(branches):
    """Spreads the search over the tree."""
    return [1 / (1 + branch.path[-1] + len(branch.path)) for branch in branches]


SETTINGS: dict = {
    "step": "no such step",
    "max_steps": 4,
    "params": LONG,
    "scorer": by_length,
    "extract": whole,
}
METHODS = {
    "mcts": MCTS(10, 3, 3, simulate=False, **SETTINGS),
    "mcts-simulated": MCTS(5, 2, 2, **SETTINGS),
    "ab-mcts": ABMCTS(14, 3, simulate=False, **SETTINGS),
    "tot-dfs": TreeOfThoughts("dfs", 3, threshold=0.0, max_nodes=12, **SETTINGS),
}


def watched(engine: Engine) -> list[int]:
    """Blocks in use after each step from now on."""
    held: list[int] = []
    engine.observe(lambda stats: held.append(engine.blocks_in_use))
    return held


@pytest.mark.parametrize("name", list(METHODS))
def test_less_room_gives_the_same_output(name):
    method = METHODS[name]
    free = small_engine()
    held = watched(free)
    expected = free.solve(QUESTION, method)
    most = max(held)
    rows = [{**row, "status": ""} for row in expected.tree.as_rows()]
    smallest = 16 if name == "mcts-simulated" else 10
    for room in (most - 3, (most + smallest) // 2, smallest):
        engine = small_engine()
        held = watched(engine)
        solution = engine.solve(QUESTION, replace(method, kv_blocks=room))
        assert max(held) <= room
        assert [{**row, "status": ""} for row in solution.tree.as_rows()] == rows
        assert solution.votes == expected.votes
        assert solution.usage.generated_tokens == expected.usage.generated_tokens
        assert engine.blocks_in_use == 0
    # It is paid for in computed tokens, where anything dropped is taken up again.
    paid = solution.usage.computed_tokens - expected.usage.computed_tokens
    assert paid > 0 if name == "mcts" else paid >= 0


def test_too_little_room_is_said():
    engine = small_engine()
    with pytest.raises(ValueError, match=r"kv_blocks=2 does not hold one more step of .* takes"):
        engine.solve(QUESTION, replace(METHODS["mcts"], kv_blocks=2))
    assert engine.blocks_in_use == 0


def test_the_least_valuable_leaf_goes_first():
    engine = small_engine()
    released = []

    def search():
        [question] = [(yield Prefill(QUESTION))]
        worth = {0: 3.0, 1: 1.0, 2: 2.0}
        explorer = Explorer(
            question,
            Growth("no such step", 9, LONG),
            lambda branches: [worth.get(b.path[-1], 9.0) for b in branches],
            kv_blocks=8,
        )
        [kids] = yield from explorer.expand([Job(explorer.root, 3)])
        # The question has one block, its children touch two each, and so does the next step: 9.
        yield from explorer.expand([Job(kids[0], 1)])
        released.extend(kid.branch.num_stored == 0 for kid in kids)
        assert explorer.room.num_dropped == 1

    engine.run_program(search())
    assert released == [False, True, False]


def test_the_cost_of_leaves_is_what_they_hold():
    """Unique tokens, counted on the tree, against the blocks that the engine really holds."""
    engine = small_engine()

    def search():
        question = yield Prefill(QUESTION * 7)
        explorer = Explorer(question, Growth("no such step", 9, LONG), constant)
        [kids] = yield from explorer.expand([Job(explorer.root, 3)])
        families = yield from explorer.expand([Job(kid, 2) for kid in kids])
        leaves = [leaf for family in families for leaf in family]
        cost = token_cost(leaves)
        numbers = [0, 1, 4]
        kept = [leaves[i] for i in numbers]
        gone = [node for node in explorer.root.walk() if node not in kept]
        yield Release(branches_of(gone))
        assert cost(numbers) == question.num_tokens + 2 * 20 + 3 * 20
        # Each of six nodes has at most one block that is not full and one that begins elsewhere.
        blocks = engine.blocks_in_use
        assert cost(numbers) / 16 <= blocks <= cost(numbers) / 16 + 6
        assert cost(range(6)) > cost(numbers) > cost([0])

    engine.run_program(search())
    assert engine.blocks_in_use == 0


# ---- Release, in the engine ----


def test_a_released_branch_goes_on_as_if_it_had_kept_its_keys():
    def program(release):
        root = yield Prefill(QUESTION * 5)
        kids = yield Fork(root, 3)
        yield Extend(kids, LONG)
        if release:
            yield Release([*kids, root] if release == "all" else kids)
        yield Extend(kids, LONG)
        grandkids = yield Fork(kids[1], 2)
        yield Extend(grandkids, LONG)
        return [branch.tokens for branch in (*kids, *grandkids)]

    texts = [small_engine().run_program(program(how)) for how in ("", "some", "all")]
    assert texts[0] == texts[1] == texts[2]


def test_a_branch_shares_with_its_nearest_stored_ancestor():
    engine = small_engine()

    def program():
        root = yield Prefill(QUESTION * 5)
        [kid] = yield Fork(root)
        yield Extend([kid], LONG)
        [grandkid] = yield Fork(kid)
        yield Extend([grandkid], LONG)
        yield Release([grandkid])
        before = engine.usage.computed_tokens
        [child] = yield Fork(grandkid)
        # Its own tokens alone are computed again, and what the other two hold is held once.
        assert engine.usage.computed_tokens - before == 20
        held = {int(entry[0]) for b in (root, kid) for entry in b.table.entries()}
        again = [int(entry[0]) for entry in child.table.entries()]
        assert len([block for block in again if block in held]) >= kid.num_stored // 16
        return child.tokens, child.logits

    tokens, logits = engine.run_program(program(), keep=True)
    fresh = small_engine()
    assert torch.equal(logits, fresh.prefill(tokens).logits)


def test_an_ancestor_that_was_rolled_back_is_not_shared():
    def program(release):
        root = yield Prefill(QUESTION * 5)
        [kid] = yield Fork(root)
        yield Extend([kid], LONG)
        [grandkid] = yield Fork(kid)
        yield Extend([grandkid], LONG)
        if release:
            yield Release([grandkid])
        yield Rollback(kid, kid.fork_length + 3)
        yield Extend([kid], tokens="zzzzzzzzzzzzzzzzzzzzzzzzzzzz")
        yield Extend([grandkid], LONG)
        return grandkid.tokens

    assert small_engine().run_program(program(True)) == small_engine().run_program(program(False))


def test_only_what_text_can_bring_back_is_released():
    engine = small_engine()
    root = engine.prefill(QUESTION)
    kids = engine.fork(root, 2)
    engine.extend(kids, LONG)
    joined = engine.join(root, kids, "kv_union")
    with pytest.raises(ValueError, match="can't bring back its keys"):
        engine.run(Release([joined]))
    engine.prune(kids[0])
    with pytest.raises(ValueError, match="can't go on"):
        engine.run(Release([kids[0]]))
