"""The formats of `reasoner-judge`: what it is taught is what methods show it, and it reads it."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Extend, Fork, Prefill, Prune
from parallel_decode.reasoning import SSA, Author, UniversalSelfConsistency
from parallel_decode.reasoning.synthesis import (
    reasoner_quotation,
    reasoner_reading,
    reasoner_verdict,
)
from parallel_decode.reasoning.synthesis.reasoner_format import CANDIDATE, CHOOSE, SYNTHESIS, VERIFY
from parallel_decode.tasks import TASKS, Problem, load_split
from parallel_decode.tasks.program import Program
from tests.accuracy import assert_as_accurate_as_torch
from tests.tiny_model import next_logits
from tests.training_text import TrainingText

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EXTRACT = TASKS["dag"].extract_answer
GREEDY = SamplingParams(temperature=0, max_tokens=200)


@pytest.fixture
def form(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("format_candidates")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner-judge", threads=1, kv_tokens=1 << 16)


@pytest.mark.parametrize("kind", [("chain", 4), ("dag", 2)], ids=["chain", "dag"])
def test_the_training_form_is_what_the_engine_computes(form, engine, kind):
    """Tokens and logits of all three, which don't see each other."""
    text = TrainingText.of("format_candidates", "reasoner-judge", kind)
    exact, single = text.dense(torch.float64), text.dense(torch.float32)
    tag = {t: engine.tokenizer.encode(t, add_bos=False)[0] for t in (SYNTHESIS, CHOOSE, VERIFY)}
    at = {name: text.tokens.index(token) for name, token in tag.items()}
    verified = text.tokens.index(engine.tokenizer.eos_ids[0], at[CHOOSE]) + 1
    [problem] = load_split("test", 1, 0, {kind: 1})
    shown = engine.tokenizer.decode(text.tokens[len(text.prompt) : at[SYNTHESIS]])
    candidates = [part.split("\n", 1)[1].strip() for part in shown.split(CANDIDATE)[1:]]
    quoted = problem.question + reasoner_quotation().of(candidates)
    assert engine.tokenizer.encode(quoted) == text.tokens[: at[SYNTHESIS] + 1]
    reading = reasoner_reading()
    read = "".join(reading.shown(n, candidate) for n, candidate in enumerate(candidates, 1))
    assert read + reading.tail == reasoner_quotation().of(candidates).replace(SYNTHESIS, CHOOSE)
    # The end of the reader's own solution is taken back before it is asked for its verdict.
    check = [n for n in range(verified, len(text.tokens)) if n != at[VERIFY] - 1]
    spans = (range(at[SYNTHESIS], at[CHOOSE]), range(at[CHOOSE], verified), check)
    for numbers in spans:
        behind = len(text.prompt) if numbers is check else at[SYNTHESIS]
        branch = engine.prefill(text.tokens[:behind])
        rows = []
        for number in numbers:
            engine.extend(branch, tokens=[text.tokens[number]])
            rows.append(next_logits(engine, branch))
        numbers = list(numbers)
        assert_as_accurate_as_torch(torch.stack(rows), exact[numbers], single[numbers])
        engine.prune([branch])


def test_an_attempt_slips_as_often_as_it_is_told(form):
    [problem] = load_split("test", 1, 0, {("dag", 6): 1})
    program, rng = Program.parse(problem.question), Random(0)
    assert form.attempt(program, 0, rng) == program.trace
    tries = [form.attempt(program, 1, rng) for _ in range(50)]
    assert sum(all(program.check_steps(text)) for text in tries) < 20
    assert all(len(program.check_steps(text)) == len(program.gold_lines) for text in tries)


def attempts(form, problem: Problem, slips: Sequence[int], seed: int) -> list[str]:
    program = Program.parse(problem.question)
    return [form.attempt(program, n, Random(seed + i)) for i, n in enumerate(slips)]


def test_verdicts_tell_right_solutions_from_wrong_ones(form, engine):
    """By chance it would be one in two."""
    problems = load_split("test", 80, 0, {("chain", 10): 1, ("dag", 4): 1})
    judge = reasoner_verdict()

    def score(problem: Problem, texts: Sequence[str]):
        root = yield Prefill(problem.question)
        branches = yield Fork(root, len(texts))
        yield [Extend([b], tokens=text) for b, text in zip(branches, texts, strict=True)]
        scores = yield from judge(branches)
        yield Prune([root, *branches])
        return scores

    wins = []
    for seed, problem in enumerate(problems):
        good, bad = attempts(form, problem, (0, 2), seed)
        if EXTRACT(bad) != problem.answer:
            better, worse = engine.run_program(score(problem, [good, bad]))
            wins.append(better > worse)
    assert len(wins) > 60 and sum(wins) / len(wins) > 0.7
    assert engine.blocks_in_use == 0


def test_a_synthesis_reads_its_candidates(form, engine):
    """One of them right and the others wrong is more than nobody's; those of another question are
    of no use."""
    problems = load_split("test", 40, 0, {("dag", 5): 1})
    right = {}
    for name, slips in (("one is right", (2, 2, 0)), ("strangers", (0, 0, 0))):
        answers = []
        for seed, problem in enumerate(problems):
            of = problems[(seed + 1) % len(problems)] if name == "strangers" else problem
            method = SSA(
                3,
                Author(SamplingParams(temperature=0, max_tokens=1)),
                Author(GREEDY),
                strangers=attempts(form, of, slips, seed),
                shown=reasoner_quotation(),
                extract=EXTRACT,
            )
            answers.append(engine.solve(problem.question, method).answer == problem.answer)
        right[name] = sum(answers) / len(answers)
    assert right["one is right"] > 0.6


def test_it_names_a_candidate(engine):
    """Its replies are numbers of candidates. That it names the first one nearly always, whatever
    most of them say, is in its card: it has not learnt to count them."""
    problems = load_split("test", 30, 0, {("chain", 16): 1, ("dag", 5): 1})
    reply = SamplingParams(temperature=0, max_tokens=3)
    drawn = SamplingParams(temperature=1.5, max_tokens=200)
    method = UniversalSelfConsistency(4, reasoner_reading(), reply, params=drawn, extract=EXTRACT)
    solutions = engine.solve_many([p.question for p in problems], method, seed=0)
    for solution in solutions:
        assert not any("no candidate" in warning for warning in solution.warnings)
    assert any(len({path.answer for path in solution.paths}) > 1 for solution in solutions)
