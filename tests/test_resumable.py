"""A stored search goes on as if it had never stopped."""

import json
from dataclasses import replace

import pytest

from parallel_decode import Broadcast, Budget, Engine, Extend, Score
from parallel_decode.engine import Prefill
from parallel_decode.reasoning import Checkpoint, Rebase, Resumable, SelfConsistency
from tests.search_cases import PARAMS, QUESTION, all_methods, small_engine, whole
from tests.tiny_model import tiny_checkpoint


class Crash(Exception):
    pass


def hidden_sum(branches):
    """A scorer that asks the model."""
    values = yield Score(branches, head=lambda hidden: hidden.sum(-1))
    return [1 / (1 + abs(float(value))) for value in values]


def stored(engine, method, **options) -> list[str]:
    """Checkpoints of a whole run, as JSON text."""
    saved: list[str] = []

    def keep(checkpoint):
        saved.append(json.dumps(checkpoint.as_dict(), allow_nan=False))

    engine.solve(QUESTION, Resumable(method, keep), **options)
    return saved


def without_cost(solution) -> dict:
    return {key: value for key, value in solution.as_dict().items() if key != "usage"}


NAMES = list(all_methods())


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_search_gives_the_same(name):
    settings = {} if name == "self-eval-beam" else {"scorer": hidden_sum}
    method = all_methods(**settings)[name]
    whole_run = small_engine().solve(QUESTION, method)
    saved = stored(small_engine(), method)
    assert len(saved) > 4
    for text in {0: saved[0], 1: saved[len(saved) // 3], 2: saved[-2]}.values():
        engine = small_engine()  # another process: nothing is stored there
        checkpoint = Checkpoint.from_dict(json.loads(text))
        resumed = engine.solve(QUESTION, Resumable(method, resume=checkpoint))
        assert without_cost(resumed) == without_cost(whole_run)
        assert resumed.usage.generated_tokens == whole_run.usage.generated_tokens
        assert engine.blocks_in_use == 0
    # From the last one nothing is drawn: the steps are those of chunks, not of tokens.
    assert resumed.usage.forward_steps <= whole_run.usage.forward_steps


def test_a_search_that_crashed_goes_on_and_can_be_stored_again():
    method = all_methods()["rebase"]
    expected = without_cost(small_engine().solve(QUESTION, method))
    last: list[str] = []

    def crash_later(after):
        def keep(checkpoint):
            last[:] = [json.dumps(checkpoint.as_dict())]
            if len(checkpoint.answers) == after:
                raise Crash

        return keep

    resume = None
    for after in (3, 6, 8):
        engine = small_engine()
        with pytest.raises(Crash):
            engine.solve(QUESTION, Resumable(method, crash_later(after), resume))
        assert engine.blocks_in_use == 0
        resume = Checkpoint.from_dict(json.loads(last[0]))
        assert len(resume.answers) == after
    resumed = small_engine().solve(QUESTION, Resumable(method, resume=resume))
    assert without_cost(resumed) == expected


def test_a_budget_counts_what_was_drawn_before():
    method = all_methods()["rebase"]
    budget = Budget(tokens=7)
    whole_run = small_engine().solve(QUESTION, method, budget=budget)
    saved = stored(small_engine(), method)
    for text in saved[:6]:
        checkpoint = Checkpoint.from_dict(json.loads(text))
        resumed = small_engine().solve(
            QUESTION, Resumable(method, resume=checkpoint), budget=budget
        )
        if resumed.usage.generated_tokens == 7:
            assert without_cost(resumed) == without_cost(whole_run)


def test_other_methods_can_be_resumed_too():
    method = SelfConsistency(4, replace(PARAMS, max_tokens=6), whole)
    whole_run = small_engine().solve(QUESTION, method)
    for text in stored(small_engine(), method):
        checkpoint = Checkpoint.from_dict(json.loads(text))
        resumed = small_engine().solve(QUESTION, Resumable(method, resume=checkpoint))
        assert without_cost(resumed) == without_cost(whole_run)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    text = stored(small_engine(), all_methods()["rebase"])[5]
    return Checkpoint.from_dict(json.loads(text))


def resume(engine: Engine, checkpoint: Checkpoint, question=QUESTION, **changes):
    method = replace(all_methods()["rebase"], **changes)
    try:
        engine.solve(question, Resumable(method, resume=checkpoint))
    finally:
        assert engine.blocks_in_use == 0


def test_other_weights_are_refused(checkpoint):
    other = Engine(tiny_checkpoint(seed=1), threads=1, kv_tokens=1 << 12)
    with pytest.raises(ValueError, match="of another model: after the question token"):
        resume(other, checkpoint)


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        (lambda: Engine(tiny_checkpoint(num_hidden_layers=1), kv_tokens=4096), {}, "num_layers"),
        (lambda: small_engine(dtype="int8"), {}, "another model: dtype was 'float32', here 'int8'"),
        (lambda: small_engine(kv_dtype="float16"), {}, "another model: kv_dtype"),
        (lambda: small_engine(seed=3), {}, "another seed"),
        (small_engine, {"question": "other"}, "another question: question was 'hello'"),
        (small_engine, {"width": 7}, "another method: width was 3, here 7"),
        (small_engine, {"params": PARAMS}, r"another method: stop was \['d'\], here \[\]"),
    ],
)
def test_what_does_not_match_is_refused(checkpoint, engine, changes, message):
    with pytest.raises(ValueError, match=message):
        resume(engine(), checkpoint, **changes)


def test_a_checkpoint_of_another_course_is_refused(checkpoint):
    damaged = replace(checkpoint, answers=[*checkpoint.answers[:2], *checkpoint.answers[3:]])
    with pytest.raises(ValueError, match="of another search"):
        resume(small_engine(), damaged)
    with pytest.raises(ValueError, match="a checkpoint has the keys"):
        Checkpoint.from_dict({"model": {}})


def test_what_can_not_be_stored_is_refused():
    engine = small_engine()

    class Streaming(Rebase):
        def program(self, question):
            root = yield Prefill(question)
            yield Extend([root], PARAMS, on_token=lambda branch, token: None)

    class Telling(Rebase):
        def program(self, question):
            root = yield Prefill(question)
            yield Broadcast([root], "a")

    for method, name in ((Streaming(), "on_token"), (Telling(), "Broadcast")):
        with pytest.raises(ValueError, match=f"uses {name} can't be stored"):
            engine.solve(QUESTION, Resumable(method))
    assert engine.blocks_in_use == 0
