"""Decomposition by prompts: which questions are asked, in which order, and who sees what."""

import dataclasses

import pytest

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Budget
from parallel_decode.reasoning import (
    METHODS,
    LeastToMost,
    PlanAndSolve,
    SkeletonOfThought,
    Template,
)
from parallel_decode.reasoning.decomposition import numbered
from tests.tiny_model import tiny_checkpoint, tiny_engine

PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)
QUESTIONS = ["hello", "one and two", "3 + 4 = "]
TWO_POINTS = "\n1. ab\n2. cd\n"


def first_letter(text: str) -> str | None:
    return text[:1] or None


def least_to_most(**settings) -> LeastToMost:
    base = {
        "decompose": Template("\nlist: "),
        "question": Template("\nq {number}: {text}\na: "),
        "last": Template("\nend: "),
        "list_params": PARAMS,
        "params": PARAMS,
        "extract": first_letter,
    }
    return LeastToMost(**{**base, **settings})


def skeleton(**settings) -> SkeletonOfThought:
    base = {
        "router": None,
        "skeleton": Template("\nlist: "),
        "point": Template("\np {number}: {text}\n: "),
        "skeleton_params": PARAMS,
        "point_params": PARAMS,
        "params": PARAMS,
        "extract": first_letter,
    }
    return SkeletonOfThought(**{**base, **settings})


ALL = {
    "plan": PlanAndSolve(2, Template("\nplan: "), PARAMS, first_letter),
    "least": least_to_most(n=2),
    "skeleton": skeleton(n=2),
    "routed": skeleton(n=3, router=lambda branches: [0.9, 0.1, 0.5][: len(branches)]),
}


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(tiny_checkpoint(), kv_tokens=1 << 14)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (" add them\n2. take two\n3) end\n\nso", ["add them", "take two", "end"]),
        ("- a\n* b\nnot a point\n- c", ["a", "b"]),
        ("\n\n1. a\n\n2. b", ["a", "b"]),
        ("", []),
        ("1.\n2.\n", []),
        ("1. a\n2. b\n3. c\n4. d", ["a", "b", "c"]),
    ],
)
def test_lists_are_read(text, points):
    assert numbered(text, 3) == points


@pytest.mark.parametrize("name", ALL)
def test_questions_in_one_batch_give_what_each_gives_alone(engine, name):
    method = ALL[name]
    together = engine.solve_many(QUESTIONS, method, seed=5)
    assert engine.blocks_in_use == 0
    small = tiny_engine(tiny_checkpoint(), kv_tokens=1 << 14, max_batch_tokens=16)
    for question, solution in zip(QUESTIONS, together, strict=True):
        alone = small.solve(question, method, seed=5)
        assert [p.text for p in alone.paths] == [p.text for p in solution.paths]
        assert alone.usage.generated_tokens == solution.usage.generated_tokens
    assert small.blocks_in_use == 0


def test_plan_and_solve_is_a_sample_behind_the_plan(engine):
    [path] = engine.solve("hello", dataclasses.replace(ALL["plan"], n=1)).paths
    assert path.text.startswith("\nplan: ") and len(path.tokens) == 7 + 6


def test_questions_are_asked_in_order_and_the_whole_last(engine):
    """The list is given by the template: what the model adds is its last point."""
    method = least_to_most(decompose=Template("\n"), max_questions=2)
    asked = {}
    list_text = TWO_POINTS
    original = "parallel_decode.reasoning.decomposition.least_to_most.numbered"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(original, lambda text, limit: numbered(list_text, limit))
        [path] = engine.solve("hello", method).paths
    for number, text in enumerate(("ab", "cd"), 1):
        asked[number] = path.text.index(f"\nq {number}: {text}\na: ")
    assert asked[1] < asked[2] < path.text.index("\nend: ")
    # Six tokens each: the list, two answers, the last.
    assert sum(logprob == logprob for logprob in path.logprobs) == 4 * 6


def test_points_are_written_at_once_and_do_not_see_each_other(engine):
    original = "parallel_decode.reasoning.decomposition.skeleton_of_thought.numbered"
    texts = {}
    for list_text in (TWO_POINTS, "\n1. ab\n2. zz zz\n"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(original, lambda text, limit, t=list_text: numbered(t, limit))
            solution = engine.solve("hello", skeleton())
        [copy] = solution.tree.children
        texts[list_text] = [child.text for child in copy.children]
        assert solution.paths[0].text == copy.text + "".join(texts[list_text])
        # Prefills of question, prompts and forks, and six tokens of list and points each.
        assert solution.usage.forward_steps <= 2 * 6 + 4
    first, second = texts.values()
    assert first[0] == second[0] and first[1] != second[1]
    assert first[0].startswith("\np 1: ab\n: ") and first[1].startswith("\np 2: cd\n: ")


def test_the_router_decides(engine):
    solution = engine.solve("hello", ALL["routed"])
    listed = [path.text.startswith("\nlist: ") for path in solution.paths]
    assert listed == [True, False, True]
    assert solution.usage.probes == 0
    asked = engine.solve("hello", skeleton(router=SkeletonOfThought().router))
    assert asked.usage.probes > 0


@pytest.mark.parametrize("name", ALL)
def test_no_room_and_no_budget(name):
    for size in (12, 20, 30, 40):
        tight = tiny_engine(tiny_checkpoint(), kv_tokens=1 << 12, max_seq_len=size)
        if name == "plan" and size == 12:
            with pytest.raises(ValueError, match="context of 12"):
                tight.solve("hello", ALL[name])
            continue
        tight.solve("hello", ALL[name])
        tight.solve("hello", ALL[name], budget=Budget(tokens=9))
        assert tight.blocks_in_use == 0


def test_settings_are_checked():
    assert {LeastToMost, PlanAndSolve, SkeletonOfThought} <= set(METHODS)
    with pytest.raises(ValueError, match="max_questions must be at least 1, got 0"):
        least_to_most(max_questions=0)
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        skeleton(max_points=0)
    with pytest.raises(ValueError, match="it needs \\['number', 'text'\\]"):
        skeleton(point=Template("{text}"))
    for method in (LeastToMost(), PlanAndSolve(), SkeletonOfThought()):
        assert method.card.family == "decomposition"
