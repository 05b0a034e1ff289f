"""Votes, extractors and methods, on a random model: the form is tested here, not the wit."""

import json
import math
import re

import pytest
import torch

from parallel_decode import Budget, Engine, SamplingParams, Score, SelfConsistency, StepBeam
from parallel_decode.engine import Extend, Fork, Prefill
from parallel_decode.reasoning import extract
from parallel_decode.reasoning.vote import tally
from tests.tiny_model import tiny_checkpoint

PARAMS = SamplingParams(max_tokens=24)


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)


def first_letter(text: str) -> str | None:
    return text[:1] or None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7.", "7"),
        ("1,234,000", "1234000"),
        ("one of 1,2,3", "3"),
        ("x = -2.50", "-2.5"),
        ("x = \u22122", "-2"),
        ("take 7-3", "3"),
        ("3/4 of it", "3/4"),
        ("0.50/10", "10"),
        ("\u7b54\u6848\u662f42", "42"),
        ("x2", None),
        ("none", None),
    ],
)
def test_last_number(text, answer):
    assert extract.last_number(text) == answer


def test_other_extractors():
    assert extract.boxed(r"thus \boxed{\frac{1}{2}} and") == r"\frac{1}{2}"
    assert extract.boxed(r"\boxed{open") is None
    assert extract.boxed(r"\boxed{ }") is None
    assert extract.after("answer ")("a\nanswer 7 \nanswer 9\nend") == "9"
    assert extract.after("answer ")("no") is None
    assert extract.pattern(r"x=(\d)")("x=1 x=2") == "2"
    assert extract.named("after:answer ")("answer 3") == "3"
    assert extract.pattern(r"x=(\d)?")("x=") is None
    with pytest.raises(ValueError, match="no extractor 'foo'"):
        extract.named("foo")
    with pytest.raises(ValueError, match="no regular expression"):
        extract.named("regex:(")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A or (C)? I say B.", "B"),
        ("The answer is (B). A good choice", "B"),
        ("Answer: **D**\nE was close", "D"),
        ("both B and C fail, so (D) it is", "D"),
        ("I take C because it fits", "C"),
        ("A cat sat here", None),
        ("ABBA", None),
    ],
)
def test_choice_letter(text, answer):
    assert extract.choice_letter(text) == answer


def test_tally_orders_by_weight_and_then_by_appearance():
    assert tally(["b", "a", "a", "b", None], [1, 1, 1, 1, 9]) == [("b", 2), ("a", 2)]
    assert tally(["b", "a"], [1, 3])[0] == ("a", 3)
    with pytest.raises(ValueError, match="finite"):
        tally(["a"], [math.nan])


def test_self_consistency_counts_what_the_branches_say(engine):
    solution = engine.solve("hello", SelfConsistency(12, PARAMS, first_letter))
    answers = [path.text[:1] for path in solution.paths if path.text]
    assert solution.votes[0][1] == max(answers.count(a) for a in answers)
    assert sum(weight for _, weight in solution.votes) == len(answers)
    assert solution.answer == solution.votes[0][0]
    assert len({path.text for path in solution.paths}) > 6
    assert solution.usage.generated_tokens == sum(len(path.tokens) for path in solution.paths)
    assert solution.usage.prompt_tokens == len(engine.tokenizer.encode("hello"))
    assert engine.blocks_in_use == 0
    json.dumps(solution.as_dict(), allow_nan=False)


def test_votes_by_logprob_and_by_scorer(engine):
    by_logprob = engine.solve("hello", SelfConsistency(8, PARAMS, first_letter, "logprob"))
    for path in by_logprob.paths:
        assert path.weight == pytest.approx(math.exp(path.mean_logprob))

    def longest(branches):
        return [float(len(branch.output_tokens)) for branch in branches]

    weighted = engine.solve("hello", SelfConsistency(8, PARAMS, first_letter, "weighted", longest))
    assert [path.weight for path in weighted.paths] == [len(p.tokens) for p in weighted.paths]
    with pytest.raises(ValueError, match="go together"):
        SelfConsistency(vote="weighted")
    with pytest.raises(ValueError, match="vote must be one of"):
        SelfConsistency(vote="loudest")  # type: ignore[arg-type]


def test_many_questions_in_one_batch_equal_each_alone(engine):
    questions = ["one", "two", "three", "four"]
    method = SelfConsistency(5, PARAMS, first_letter)
    together = engine.solve_many(questions, method)
    for question, solution in zip(questions, together, strict=True):
        alone = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 12).solve(question, method)
        assert [p.tokens for p in alone.paths] == [p.tokens for p in solution.paths]
        assert alone.votes == solution.votes


def poison_logits(engine: Engine, step: int, rows: slice) -> None:
    """NaN in these rows of the logits of forward step `step`, counted from one."""
    model_logits = engine.model.logits
    calls = []

    def poisoned(hidden):
        logits = model_logits(hidden)
        calls.append(len(hidden))
        if len(calls) == step:
            logits[rows] = torch.nan
        return logits

    engine.model.logits = poisoned


def test_a_failed_branch_does_not_vote(engine):
    poison_logits(engine, 4, slice(2, 3))
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    method = SelfConsistency(6, params, first_letter, speculation=None)
    solution = engine.solve("hello", method)
    failed = [path for path in solution.paths if path.error]
    assert len(failed) == 1 and failed[0].weight == 0 and "NaN" in failed[0].error
    assert sum(weight for _, weight in solution.votes) == 5
    assert any("1 of 6 branches failed" in warning for warning in solution.warnings)
    assert engine.blocks_in_use == 0


def test_collapsed_branches_are_reported(engine):
    greedy = SamplingParams(temperature=0, max_tokens=8)
    solution = engine.solve("hello", SelfConsistency(4, greedy, first_letter))
    assert any("same text" in warning for warning in solution.warnings)


def test_step_beam_keeps_the_best_and_frees_the_rest(engine):
    def by_z(branches):
        return [float(branch.text.count("z")) for branch in branches]

    step = SamplingParams(max_tokens=6, ignore_eos=True)
    method = StepBeam(3, 4, by_z, step="\n", max_steps=4, params=step, extract=first_letter)
    solution = engine.solve("hello", method)
    nodes = list(solution.tree.walk())
    # 12 children of the root, then 4 for each of at most 3 kept branches, at each further step.
    assert len(solution.tree.children) == 12
    assert len(nodes) == 1 + 12 * 4
    assert len(solution.paths) == 3
    kept = [node.score for node in solution.tree.children if node.children]
    dropped = [node.score for node in solution.tree.children if not node.children]
    assert len(kept) == 3 and min(kept) >= max(dropped)
    for node in nodes:
        alive = any(child.status not in ("pruned", "failed") for child in node.children)
        assert not node.children or node.status == ("expanded" if alive else "pruned")
    assert solution.usage.generated_tokens == sum(node.num_tokens for node in nodes[1:])
    assert any("no branch reached the end" in warning for warning in solution.warnings)
    assert engine.blocks_in_use == 0


def test_step_beam_of_width_one_without_choice_is_plain_sampling(engine):
    params = SamplingParams(temperature=0, max_tokens=20)
    beam = engine.solve("hello", StepBeam(1, 1, max_steps=9, params=params, extract=first_letter))

    def plain():
        root = yield Prefill("hello")
        [kid] = yield Fork(root)
        yield Extend([kid], SamplingParams(temperature=0, max_tokens=180))
        return kid.text

    text = engine.run_program(plain())
    assert beam.paths[0].text == text[: len(beam.paths[0].text)] and beam.paths[0].text


def test_step_beam_holds_its_beams_and_no_line_that_died_out(engine):
    step = SamplingParams(max_tokens=16, ignore_eos=True)
    method = StepBeam(2, 2, step="no such step", max_steps=20, params=step, extract=first_letter)
    usage = engine.solve("hello", method).usage
    # 20 steps of one block each; before the choice between 4 children only 2 lines are held.
    assert usage.peak_blocks <= 2 * 20 + 2 * 4


def test_step_beam_stops_where_the_text_or_the_context_ends(engine):
    params = SamplingParams(max_tokens=16, stop=("a",), ignore_eos=True)
    method = StepBeam(2, 3, step="e", params=params, extract=first_letter)
    solution = engine.solve("hello", method)
    assert len(solution.paths) >= 2 and all(path.text.endswith("a") for path in solution.paths)
    small = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 12, max_seq_len=40)
    params = SamplingParams(max_tokens=7, ignore_eos=True)
    full = small.solve("hello", StepBeam(2, 2, step="no such step", params=params))
    assert {path.finish_reason for path in full.paths} == {"length"}
    assert full.usage.forward_steps < 60


def test_step_beam_within_a_budget(engine):
    method = StepBeam(2, 2, step="e", params=PARAMS, extract=first_letter)
    solution = engine.solve("hello", method, budget=Budget(tokens=50))
    assert solution.usage.generated_tokens == 50
    assert solution.paths and engine.blocks_in_use == 0


@pytest.mark.parametrize(
    ("rows", "warning"),
    [(slice(0, 1), r"^1 of \d+ branches failed: .*NaN"), (slice(None), "4 of 4 branches failed")],
    ids=["one branch", "all"],
)
def test_failed_branches_of_a_beam_are_reported(engine, rows, warning):
    poison_logits(engine, 3, rows)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    method = StepBeam(2, 2, step="e", max_steps=3, params=params, extract=first_letter)
    solution = engine.solve("hello", method)
    assert any(re.match(warning, text) for text in solution.warnings), solution.warnings
    assert (solution.answer is None) == (rows == slice(None))
    json.dumps(solution.as_dict(), allow_nan=False)
    assert engine.blocks_in_use == 0


def test_a_scorer_may_ask_the_model(engine):
    def hidden_sum(branches):
        values = yield Score(branches, head=lambda hidden: hidden.sum(-1))
        return values

    solution = engine.solve("hello", StepBeam(2, 2, hidden_sum, step="e", extract=first_letter))
    assert len({node.score for node in solution.tree.walk()}) > 4


def test_a_deep_tree_is_plain_data(engine):
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    solution = engine.solve("hello", StepBeam(1, 1, step="\n", max_steps=400, params=params))
    rows = json.loads(json.dumps(solution.as_dict()))["tree"]
    assert len(rows) == 401
    assert "".join(row["text"] for row in rows[1:]) == solution.paths[0].text
    for row in rows:
        assert row["id"] == 0 or row["id"] in rows[row["parent"]]["children"]


def test_the_tree_names_the_answers(engine):
    solution = engine.solve("hello", SelfConsistency(4, PARAMS, first_letter))
    assert [node.answer for node in solution.tree.children] == [p.answer for p in solution.paths]
    assert solution.tree.text == "hello" and solution.tree.answer is None
    cut = sum(path.finish_reason == "length" for path in solution.paths)
    assert cut and any(f"{cut} of 4 branches reached" in text for text in solution.warnings)


@pytest.mark.parametrize(
    ("scores", "message"),
    [(lambda b: [math.nan] * len(b), "gave nan"), (lambda b: [1.0], "gave 1 scores for")],
)
def test_a_bad_scorer_fails_its_question_only(engine, scores, message):
    with pytest.raises(ValueError, match=message):
        engine.solve("hello", StepBeam(2, 2, scores, params=PARAMS, extract=first_letter))
    assert engine.blocks_in_use == 0
    assert engine.solve("hello", SelfConsistency(2, PARAMS, first_letter)).paths


def test_an_extractor_that_raises_fails_its_question_only(engine):
    def broken(text):
        raise RuntimeError("no")

    [failed] = engine.solve_many(["hello"], SelfConsistency(2, PARAMS, broken))
    assert isinstance(failed, RuntimeError)
    assert engine.blocks_in_use == 0
