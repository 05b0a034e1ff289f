"""Branches that see each other, against a dense model with a mask and positions written out."""

import gc
import random
from collections.abc import Sequence

import pytest
import torch

from parallel_decode.engine import (
    Branch,
    DraftTree,
    Engine,
    Extend,
    Fork,
    PoolExhausted,
    Prefill,
    Prune,
    Release,
    Rollback,
    SamplingParams,
    Score,
    See,
    View,
)
from tests.dense_text import Text, moved
from tests.guesses import Guesser
from tests.tiny_model import TEXT, next_logits, tiny_checkpoint, tiny_engine

CHECKPOINT = tiny_checkpoint()
SAMPLED = SamplingParams(max_tokens=12, ignore_eos=True)


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


class Together:
    """Workers that see each other, token by token, and beside them the oracle's text."""

    def __init__(
        self, engine: Engine, prompt: int, count: int, offset: int | None, disjoint: int = 0
    ) -> None:
        self.engine, self.prompt, self.offset = engine, prompt, offset
        self.text = Text()
        root = engine.prefill(token_ids(prompt))
        self.base = self.text.append(root.tokens, 0, {})
        if disjoint:
            self.kids = engine.fork(root, count, positions="disjoint_ranges", lengths=[disjoint])
        else:
            self.kids = engine.fork(root, count)
        self.starts = [prompt + i * disjoint for i in range(count)]
        self.own: list[dict] = [{} for _ in self.kids]
        self.rows: dict[int, torch.Tensor] = {}
        for kid in self.kids:
            engine.see(kid, [other for other in self.kids if other is not kid], offset)

    def _view(self, number: int, own: Sequence[dict]) -> dict:
        """What the next token of worker `number` reads, from what each has now."""
        others = [view for other, view in enumerate(own) if other != number]
        total = sum(map(len, others))
        if self.offset is not None:
            view = dict(self.base)
            for other in others:
                view |= moved(other, self.offset)
            return view | own[number]
        view, cursor = moved(self.base, -total), self.starts[number] - total
        for other in others:
            if other:
                first = min(position for position, _ in other.values())
                view |= moved(other, cursor - first)
                cursor += len(other)
        return view | own[number]

    def step(self, tokens: dict[int, int]) -> None:
        """Worker -> its next token, all in one step of the engine."""
        before = [dict(view) for view in self.own]

        def program():
            yield [Extend([self.kids[worker]], tokens=[token]) for worker, token in tokens.items()]

        steps = self.engine.usage.forward_steps
        self.engine.run_program(program())
        assert self.engine.usage.forward_steps == steps + 1
        for worker, token in tokens.items():
            index = len(self.text.tokens)
            position = self.starts[worker] + len(before[worker])
            self.text.append([token], position, self._view(worker, before))
            self.own[worker][index] = (position, None)
            logits = self.kids[worker].logits
            assert logits is not None
            self.rows[index] = logits.clone()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("offset", "disjoint"), [(None, 0), (0, 0), (-7, 0), (0, 30), (None, 30)])
@pytest.mark.parametrize("prompt", [16, 21])
def test_the_dense_model_sees_the_same(backend, offset, disjoint, prompt):
    """Three workers, some of which pause; the first outgrows a block. To 1e-5 of the largest logit:
    what plain PyTorch is off by in float32, which is far less on some processors, is no measure."""
    together = Together(tiny_engine(CHECKPOINT, backend=backend), prompt, 3, offset, disjoint)
    for step in range(20):
        tokens = {0: step % 40, 1: (7 * step) % 40, 2: (step * step) % 40}
        if step % 3 == 1:
            del tokens[1]
        if step < 5:
            del tokens[2]
        together.step(tokens)
    exact = together.text.logits(torch.float64, CHECKPOINT)
    worst = max(float((exact[n] - row).abs().max()) for n, row in together.rows.items())
    assert worst < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("offset", [None, 0])
def test_a_sliding_window_goes_by_the_positions_that_are_read(offset):
    checkpoint = tiny_checkpoint(model_type="mistral", sliding_window=11)
    together = Together(tiny_engine(checkpoint), 20, 2, offset)
    for step in range(18):
        together.step({0: step, 1: 40 - step})
    together.text.check(together.rows, checkpoint)


def test_triton_reads_the_same_views():
    together = Together(tiny_engine(CHECKPOINT, backend="triton"), 21, 2, None)
    for step in range(4):
        together.step({0: step, 1: 40 - step})
    exact = together.text.logits(torch.float64, CHECKPOINT)
    worst = max(float((exact[n] - row).abs().max()) for n, row in together.rows.items())
    assert worst < 1e-4 * float(exact.abs().max())


def grown(engine: Engine, see: bool, peers: str) -> tuple[list, torch.Tensor]:
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 3)
    if peers == "pruned":
        engine.prune(kids[2])
    if see:
        engine.see(kids[0], {"none": [], "empty": [kids[2]], "pruned": [kids[2]]}[peers])
    engine.extend(kids[:2], SAMPLED)
    return [kid.tokens for kid in kids[:2]], next_logits(engine, kids[0])


@pytest.mark.parametrize("peers", ["none", "empty", "pruned"])
def test_without_anything_to_see_a_branch_is_alone_bit_for_bit(peers):
    tokens, logits = grown(tiny_engine(CHECKPOINT), True, peers)
    alone, alone_logits = grown(tiny_engine(CHECKPOINT), False, peers)
    assert tokens == alone
    assert torch.equal(logits, alone_logits)


def workers(engine: Engine, count: int = 3, see: bool = True, prompt: int = 20) -> list[Branch]:
    kids = engine.fork(engine.prefill(token_ids(prompt)), count)
    if see:
        for kid in kids:
            engine.see(kid, [other for other in kids if other is not kid])
    return kids


def test_seeing_changes_what_is_drawn_and_stores_no_more():
    seeing, apart = tiny_engine(CHECKPOINT), tiny_engine(CHECKPOINT)
    copies: dict[int, int] = {}
    for engine in (seeing, apart):
        cache = engine.cache
        copy = cache.copy_blocks

        def counted(pairs, cache=cache, copy=copy):
            copies[id(cache)] = copies.get(id(cache), 0) + len(pairs)
            copy(pairs)

        cache.copy_blocks = counted
    ours, theirs = workers(seeing), workers(apart, see=False)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    seeing.extend(ours, params)
    apart.extend(theirs, params)
    # The first token is drawn from what was known before, the others are not.
    assert [kid.own_tokens[0] for kid in ours] == [kid.own_tokens[0] for kid in theirs]
    assert all(a.own_tokens != b.own_tokens for a, b in zip(ours, theirs, strict=True))
    assert seeing.blocks_in_use == apart.blocks_in_use
    assert copies[id(seeing.cache)] == copies[id(apart.cache)] == len(ours)


@pytest.mark.parametrize("crowd", [0, 9])
@pytest.mark.parametrize("max_batch_tokens", [16, 512])
def test_a_run_repeats_exactly_in_any_batch(crowd, max_batch_tokens):
    def program():
        root = yield Prefill(token_ids(37))
        kids = yield Fork(root, 3)
        yield [See(kid, [other for other in kids if other is not kid]) for kid in kids]
        yield [Extend([kids[0]], SAMPLED, tokens=token_ids(9)), Extend(kids[1:], SAMPLED)]
        yield Prune(kids)
        return [(kid.tokens, kid.records) for kid in kids]

    def other(number):
        root = yield Prefill(token_ids(50 + number))
        yield Extend([root], SAMPLED)

    engine = tiny_engine(CHECKPOINT, max_batch_tokens=max_batch_tokens)
    ours = engine.submit(program(), seed=0)
    others = [engine.submit(other(number)) for number in range(crowd)]
    engine.wait([ours, *others])
    assert ours.result == tiny_engine(CHECKPOINT).run_program(program(), seed=0)
    assert engine.blocks_in_use == 0


def test_a_drafter_leaves_those_alone_who_see_or_are_seen():
    outputs = []
    for speculator in (None, Guesser(num_nodes=4)):
        engine = tiny_engine(CHECKPOINT)
        engine.speculator = speculator
        root = engine.prefill(token_ids(20))
        seeing, seen, apart = engine.fork(root, 3)
        engine.see(seeing, [seen])
        engine.extend([seeing, seen, apart], SamplingParams(max_tokens=30, ignore_eos=True))
        outputs.append([branch.tokens for branch in (seeing, seen, apart)])
        if speculator is not None:
            assert {id(entry.branch) for entry in speculator.verified} == {id(apart)}
    assert outputs[0] == outputs[1]


def test_forks_and_probes_of_a_branch_see_what_it_sees():
    engine = tiny_engine(CHECKPOINT)
    kids = workers(engine)
    engine.extend(kids, SAMPLED)
    [fork] = engine.fork(kids[0])
    scored = engine.score(kids[0], [1, 2, 3])[0]
    engine.extend(fork, tokens=[1, 2, 3], logprobs=True)
    assert fork.logprobs[-3:] == scored
    engine.see(kids[0], [])
    assert engine.score(kids[0], [1, 2, 3])[0][1:] != scored[1:]


def test_peers_that_are_rolled_back_pruned_and_finished():
    """A step sees of a peer what it has then."""
    together = Together(tiny_engine(CHECKPOINT), 20, 3, None)
    for step in range(6):
        together.step({0: step, 1: 2 * step, 2: 3 * step})
    engine, (first, second, third) = together.engine, together.kids
    engine.rollback(second, 22)
    together.own[1] = dict(list(together.own[1].items())[:2])
    together.step({0: 5})
    together.step({0: 6, 1: 7})
    engine.rollback(second, 20)
    together.own[1] = {}
    together.step({0: 8})
    together.step({0: 3, 1: 9})
    third.status = "finished"
    together.step({0: 1, 1: 1})
    engine.prune(third)
    together.own[2] = {}
    together.step({0: 2, 1: 2})
    together.text.check(together.rows, CHECKPOINT)
    engine.prune([first, second])


def test_a_rollback_of_the_branch_itself_goes_behind_what_it_sees():
    together = Together(tiny_engine(CHECKPOINT), 20, 2, None)
    for step in range(4):
        together.step({0: step, 1: 2 * step})
    together.engine.rollback(together.kids[0], 22)
    together.own[0] = dict(list(together.own[0].items())[:2])
    together.step({0: 11, 1: 12})
    together.text.check(together.rows, CHECKPOINT)
    # Into the prompt: the views stand where it was cut.
    together.engine.rollback(together.kids[0], 18)
    assert together.kids[0].sight.boundary == 18


def test_views_begin_where_they_are_asked_to():
    engine = tiny_engine(CHECKPOINT)
    text = Text()
    root = engine.prefill(token_ids(20))
    base = text.append(root.tokens, 0, {})
    one, two = engine.fork(root, 2)
    engine.extend(two, tokens=token_ids(9))
    own = text.append(two.own_tokens, 20, base)
    view = {n: place for n, place in own.items() if n >= 24}
    engine.see(one, [View(two, 24)])
    engine.extend(one, tokens=[5])
    text.append([5], 20, moved(base, -5) | moved(view, 15 - 24))
    text.check({len(text.tokens) - 1: one.logits}, CHECKPOINT)


def test_a_question_that_sees_keeps_its_blocks_and_others_wait():
    def seeing():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 2)
        yield [See(kid, [other for other in kids if other is not kid]) for kid in kids]
        yield Extend(kids, SamplingParams(max_tokens=60, ignore_eos=True))
        return [kid.tokens for kid in kids]

    def alone(number):
        root = yield Prefill(token_ids(40, number))
        yield Extend([root], SamplingParams(max_tokens=40, ignore_eos=True))
        return root.tokens

    expected = tiny_engine(CHECKPOINT).run_program(seeing(), seed=0)
    engine = tiny_engine(CHECKPOINT, kv_tokens=16 * 16)
    # The youngest is the first to be put out, as a rule.
    others = [engine.submit(alone(number), seed=0) for number in range(3)]
    ours = engine.submit(seeing(), seed=0)
    engine.wait([*others, ours])
    assert ours.result == expected
    assert ours.usage.preemptions == 0
    assert engine.usage.preemptions > 0
    assert all(len(other.result) == 80 for other in others)
    engine = tiny_engine(CHECKPOINT, kv_tokens=16 * 4)
    with pytest.raises(PoolExhausted):
        engine.run_program(seeing())
    assert engine.blocks_in_use == 0


def test_what_can_not_be():
    engine, other = tiny_engine(CHECKPOINT), tiny_engine(CHECKPOINT)
    one, two, three = workers(engine)
    cases = {
        "named twice": (two, [one, one]),
        "sees its own": (two, [two]),
        "another pool": (two, [other.prefill(token_ids(5))]),
        "from token 99 on": (two, [View(one, 99)]),
        "from token -1 on": (two, [View(one, -1)]),
    }
    for message, (branch, views) in cases.items():
        sight = branch.sight
        with pytest.raises(ValueError, match=message):
            engine.see(branch, views)
        assert branch.sight is sight
    engine.prune(three)
    with pytest.raises(ValueError, match="can't go on"):
        engine.see(three, [one])
    with pytest.raises(ValueError, match="goes token by token"):
        engine.verify(one, [DraftTree.chain([1, 2])], SAMPLED)

    def released():
        yield Release([one])

    with pytest.raises(ValueError, match="saw others"):
        engine.run_program(released())


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_leak_no_block(seed):
    def program():
        choose = random.Random(seed)
        live = [(yield Prefill(token_ids(choose.randint(1, 40), seed)))]
        for _ in range(60):
            branch = choose.choice(live)
            kind = choose.randrange(7)
            if kind == 0 and len(live) < 9:
                live += yield Fork(
                    branch, choose.randint(1, 2), choose.randint(1, branch.num_tokens)
                )
            elif kind == 1 and len(live) > 1:
                live.remove(branch)
                yield Prune([branch])
            elif kind == 2 and branch.num_tokens > 1:
                yield Rollback(branch, choose.randint(1, branch.num_tokens))
            elif kind == 3:
                peers = [other for other in live if other is not branch]
                views = choose.sample(peers, choose.randint(0, len(peers)))
                yield See(branch, views, choose.choice([None, 0, -5]))
            elif kind == 4:
                yield Score([branch], [1, 2])
            else:
                some = choose.sample(live, choose.randint(1, len(live)))
                yield Extend(some, SamplingParams(max_tokens=choose.randint(1, 6), ignore_eos=True))
        return [branch.tokens for branch in live]

    engine = tiny_engine(CHECKPOINT)
    result = engine.run_program(program())
    gc.collect()
    assert engine.blocks_in_use == 0
    assert result == tiny_engine(CHECKPOINT).run_program(program())
