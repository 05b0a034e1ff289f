"""Speculation changes how long tokens take: never which, never what else is known of a branch."""

import dataclasses
import functools
import itertools
import random

import pytest

from parallel_decode.engine import Branch, Engine, Extend, Fork, Prefill, SamplingParams
from tests.guesses import GUESSERS, Listener, Said, guessers
from tests.tiny_model import TEXT, tiny_engine

EOS = len(TEXT) + 1

PARAMS = {
    "greedy": {"temperature": 0.0},
    "sampled": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.6, "temperature": 1.3},
    "min-p": {"min_p": 0.2},
    "all filters": {"temperature": 1.5, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
    "repetition": {"repetition_penalty": 1.6, "temperature": 0.0},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8, "temperature": 0.0},
    "all penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "top_k": 20,
    },
    "bias": {"logit_bias": {3: 4.0, 7: -50.0}},
    "allowed": {"allowed_tokens": frozenset({1, 5, 9, 30})},
    "min tokens": {"min_tokens": 9, "stop_tokens": (3,), "logit_bias": {3: 9.0}},
    "stop string": {"stop": ("abba", "bbb"), "allowed_tokens": frozenset({0, 1})},
    "stop token": {"stop_tokens": (7,), "allowed_tokens": frozenset({6, 7, 8, 9, 10})},
    "eos": {"ignore_eos": False, "logit_bias": {EOS: 3.0}},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
    "logprobs": {"logprobs": 4, "temperature": 0.7},
    "seed": {"seed": 12345},
}
STORAGE = {
    "float32": {},
    "float16 keys": {"kv_dtype": "float16"},
    "int8 keys": {"kv_dtype": "int8"},
    "int8 weights": {"dtype": "int8"},
    "int8 both": {"dtype": "int8", "kv_dtype": "int8"},
}
LAYOUTS = {"1 branch": (1,), "3 branches": (3,), "8 branches": (8,), "2 questions": (3, 2)}


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


def params_of(case: str) -> SamplingParams:
    return SamplingParams(**{"ignore_eos": True, "max_tokens": 21, **PARAMS[case]})


@functools.cache
def engine_of(storage: str) -> Engine:
    return tiny_engine(**STORAGE[storage])


def question(number: int, num_branches: int, params: list[SamplingParams]):
    root = yield Prefill(token_ids(14 + 3 * number, number))
    kids = yield Fork(root, num_branches)
    yield Extend(kids, list(itertools.islice(itertools.cycle(params), num_branches)))
    return [root, *kids]


def state(branch: Branch) -> tuple:
    """All that can be told of a branch; floats in all their digits."""
    return (
        branch.path,
        branch.tokens,
        list(map(str, branch.records)),
        (branch.status, branch.finish_reason, branch.stop_string, branch.error),
        (branch.num_stored, branch.end_position),
        None if branch.hidden is None else branch.hidden.tolist(),
        None if branch.logits is None else branch.logits.tolist(),
    )


@dataclasses.dataclass
class Run:
    states: list
    steps: int
    computed: int
    generated: int
    blocks: int


def run(engine: Engine, speculator: Listener | None, layout: tuple[int, ...], params) -> Run:
    """What the questions' branches are with this speculator; the engine is empty before and after.

    What the engine says of drafts is compared with what the speculator has seen of them.
    """
    engine.clear_prefixes()
    assert engine.cache.num_used == 0
    before = engine.usage
    engine.speculator = speculator
    programs = [
        engine.submit(question(number, count, params), keep=True)
        for number, count in enumerate(layout)
    ]
    engine.wait(programs)
    engine.speculator = None
    branches = [branch for program in programs for branch in program.result]
    after, blocks = engine.usage, engine.blocks_in_use
    states = list(map(state, branches))
    engine.prune(branches)
    assert engine.blocks_in_use == 0
    for name in ("drafted_tokens", "accepted_tokens", "generated_tokens"):
        of_programs = sum(getattr(program.usage, name) for program in programs)
        assert getattr(after, name) - getattr(before, name) == of_programs
    drafted = after.drafted_tokens - before.drafted_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    if speculator is not None:
        assert (drafted, accepted) == (speculator.num_drafted, speculator.num_accepted)
    return Run(
        states,
        after.forward_steps - before.forward_steps,
        # A node that was wrong was computed for nothing, each other token once.
        after.computed_tokens - before.computed_tokens - drafted + accepted,
        after.generated_tokens - before.generated_tokens,
        blocks,
    )


@functools.cache
def plain_run(storage: str, layout: str, case: str) -> tuple[Run, Said]:
    listener = Listener()
    params = [params_of(case)] if case else [params_of(name) for name in PARAMS]
    plain = run(engine_of(storage), listener, LAYOUTS[layout], params)
    assert plain == run(engine_of(storage), None, LAYOUTS[layout], params)
    return plain, listener.said


def assert_same_as_plain(kind: str, storage: str, layout: str, case: str) -> None:
    plain, said = plain_run(storage, layout, case)
    speculator = guessers(said)[kind]
    params = [params_of(case)] if case else [params_of(name) for name in PARAMS]
    speculated = run(engine_of(storage), speculator, LAYOUTS[layout], params)
    assert speculated.steps <= plain.steps
    assert speculated == dataclasses.replace(plain, steps=speculated.steps)
    if kind in ("right", "right, among decoys") and plain.steps > 8:
        assert speculated.steps < plain.steps / 2
    if kind in ("always wrong", "nothing"):
        assert speculator.num_accepted == 0 and speculated.steps == plain.steps


@pytest.mark.parametrize("case", PARAMS)
@pytest.mark.parametrize("kind", GUESSERS)
def test_every_parameter_gives_what_it_gives_without(kind, case):
    assert_same_as_plain(kind, "float32", "3 branches", case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("kind", GUESSERS)
def test_every_storage_and_number_of_branches_gives_what_it_gives_without(kind, storage, layout):
    """Each branch has parameters of its own."""
    assert_same_as_plain(kind, storage, layout, "")


def test_the_cases_end_in_every_way():
    """Or the tests above would say little."""
    states = [s for case in PARAMS for s in plain_run("float32", "3 branches", case)[0].states]
    ends = {(reason, stop) for _, _, _, (_, reason, stop, _), *_ in states}
    assert {("length", None), ("eos", None), ("stop", None), ("stop", "bbb")} <= ends
