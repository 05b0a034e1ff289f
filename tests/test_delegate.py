"""Programs on another engine: batched with each other, counted, and dropped with who waits."""

import pytest

from parallel_decode import Engine, Extend, Fork, Prefill, Prune, SamplingParams, Score
from parallel_decode.engine import Delegate, FirstOf
from tests.tiny_model import tiny_checkpoint, tiny_engine

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


def looked_at(text):
    """On the other engine: the sum of the last hidden state."""
    root = yield Prefill(text)
    [value] = yield Score([root], head=lambda hidden: hidden.sum(-1))
    return float(value)


def sampled_and_judged(question, other):
    root = yield Prefill(question)
    [kid] = yield Fork(root)
    yield Extend([kid], PARAMS)
    value = yield Delegate(other, looked_at(question + kid.text))
    yield Prune([kid])
    return kid.text, value


def test_guests_of_many_programs_share_the_other_engines_batch():
    engine, other = tiny_engine(), tiny_engine(tiny_checkpoint(seed=1))
    sizes = []
    other.observe(lambda stats: sizes.append(stats.num_branches))
    questions = ["one", "two", "six"]
    programs = [engine.submit(sampled_and_judged(text, other)) for text in questions]
    engine.wait(programs)
    assert max(sizes) == 3
    for question, program in zip(questions, programs, strict=True):
        text, value = program.result
        alone = tiny_engine(tiny_checkpoint(seed=1))
        assert value == alone.run_program(looked_at(question + text))
        tokens = len(other.tokenizer.encode(question + text))
        assert program.usage.delegated_tokens == tokens
        assert program.usage.generated_tokens == 12
    assert engine.usage.delegated_tokens == other.usage.computed_tokens
    assert engine.blocks_in_use == other.blocks_in_use == 0


def test_errors_reach_the_program_that_waits():
    engine, other = tiny_engine(), tiny_engine()

    def asks(text):
        try:
            yield Delegate(other, looked_at(text))
        except ValueError as error:
            return str(error)

    assert "empty" in engine.run_program(asks([]))
    small = Engine(tiny_checkpoint(), threads=1, kv_tokens=16)
    with pytest.raises(RuntimeError, match="KV blocks"):
        engine.run_program(iter_of(Delegate(small, looked_at("x" * 40))))
    assert small.blocks_in_use == 0


def iter_of(operation):
    result = yield operation
    return result


def test_an_engine_does_not_wait_for_itself():
    engine, other = tiny_engine(), tiny_engine()
    with pytest.raises(ValueError, match="the engine waits for this program"):
        engine.run_program(iter_of(Delegate(engine, looked_at("a"))))

    def there_and_back():
        yield Delegate(engine, looked_at("a"))

    with pytest.raises(ValueError, match="the engine waits for this program"):
        engine.run_program(iter_of(Delegate(other, there_and_back())))
    assert engine.run_program(iter_of(Delegate(other, looked_at("a")))) is not None


def test_the_first_of_two_and_the_end_of_who_waits():
    engine, other = tiny_engine(), tiny_engine()
    long = SamplingParams(max_tokens=300, ignore_eos=True)

    def endless():
        root = yield Prefill("endless")
        yield Extend([root], long)
        return root.num_sampled

    def takes_the_first():
        quick, slow = Delegate(other, looked_at("a")), Delegate(other, endless())
        done = yield FirstOf([quick, slow])
        return [operation is quick for operation in done]

    assert engine.run_program(takes_the_first()) == [True]
    # The slow one was dropped with the program that had asked for it.
    assert other.blocks_in_use == 0 and not other.step()

    def fails():
        slow = Delegate(other, endless())
        yield FirstOf([slow, Delegate(other, looked_at("b"))])
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        engine.run_program(fails())
    assert other.blocks_in_use == 0 and engine.blocks_in_use == 0

    def keeps():
        return (yield Delegate(other, endless()))

    program = engine.submit(keeps())
    for _ in range(5):
        engine.step()
    engine._scheduler.interrupt([program])
    engine.wait([program])
    assert 0 < program.result < 300


def test_draws_follow_the_seed_of_who_asks():
    def sample():
        root = yield Prefill("a")
        yield Extend([root], PARAMS)
        return root.text

    def asks(other):
        return (yield Delegate(other, sample()))

    engine, other = tiny_engine(), tiny_engine()
    texts = [engine.run_program(asks(other), seed=seed) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert texts[1] == tiny_engine().run_program(sample(), seed=2)
