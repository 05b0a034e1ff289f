"""The script that trains verifiers runs end to end, and the bundled one is worth its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from parallel_decode import BestOfN, Engine, Extend, Fork, Prefill, Prune, SamplingParams, StepBeam
from parallel_decode.model import open_heads
from parallel_decode.reasoning import Verifier
from parallel_decode.reasoning.extract import after
from parallel_decode.reasoning.metrics import auroc, within_question_discrimination
from parallel_decode.reasoning.ranking.reduction import REDUCTIONS
from parallel_decode.reasoning.ranking.step_statistics import STATISTICS
from parallel_decode.tasks import TASKS, load_split

ROOT = Path(__file__).resolve().parent.parent
PARAMS = SamplingParams(max_tokens=200)
EXTRACT = after("answer ")
DEPTHS = 6
"""Steps that nearly every trace has."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 15)


@pytest.mark.parametrize("options", [[], ["--rollouts", "2"]], ids=["exact labels", "roll-outs"])
def test_quick_run_writes_heads_that_open(tmp_path, options):
    script = ROOT / "examples" / "train_verifier.py"
    subprocess.run(
        [sys.executable, script, "--quick", "--out", tmp_path, *options],
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    heads = open_heads(tmp_path)
    assert heads.classifier.labels == ("outcome", "process")
    assert heads.statistics == STATISTICS and heads.reduce in REDUCTIONS
    assert Verifier.from_pretrained(tmp_path, "process").reduce == heads.reduce
    card = (tmp_path / "README.md").read_text()
    assert "shuffled (control)" in card and "| outcome |" in card


def test_bad_arguments_of_the_script():
    script = ROOT / "examples" / "train_verifier.py"
    done = subprocess.run(
        [sys.executable, script, "--problems", "0"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "--problems must be at least 1" in done.stderr


def test_the_bundled_files_are_small_and_the_card_shows_the_gain():
    folder = ROOT / "parallel_decode" / "assets" / "reasoner-verifier"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    card = (folder / "README.md").read_text()
    reduce = open_heads("reasoner-verifier").reduce
    [row] = [line for line in card.splitlines() if line.startswith(f"| process, {reduce} |")]
    low = float(re.findall(r"\(([+-][\d.]+) to", row)[-1])
    assert low > 0, "weighted best-of-16 beats the majority of the same traces"


def test_bundled_scores_tell_right_from_wrong_within_questions(engine):
    problems = load_split("test", 20, seed=5)
    verifiers = {kind: Verifier.from_pretrained("reasoner-verifier", kind) for kind in KINDS}

    def scored(problem):
        root = yield Prefill(problem.question)
        kids = yield Fork(root, 12)
        yield Extend(kids, PARAMS, keep_hidden="\n")
        scores = {}
        for kind, verifier in verifiers.items():
            scores[kind] = yield from verifier(kids)
        steps = yield from verifiers["process"].step_scores(kids)
        yield Prune(kids)
        return [kid.text for kid in kids], scores, steps

    programs = [engine.submit(scored(problem)) for problem in problems]
    engine.wait(programs)
    results = [program.result for program in programs]
    right = [
        [TASKS[problem.task].check(problem, text) for text in texts]
        for problem, (texts, _, _) in zip(problems, results, strict=True)
    ]
    for kind in KINDS:
        found = within_question_discrimination([scores[kind] for _, scores, _ in results], right)
        # Measured: see the card; 0.5 is chance, with a standard error of about 0.05 here.
        assert found > 0.7
    verdicts: list[bool] = []
    values: list[float] = []
    for problem, (texts, _, steps) in zip(problems, results, strict=True):
        for text, row in zip(texts, steps, strict=True):
            exact = TASKS[problem.task].check_steps(problem, text)
            if len(exact) == len(row):
                verdicts += exact
                values += row
    assert auroc(values, verdicts) > 0.85
    assert all(0 <= value <= 1 for value in values)
    # Not only because late steps are wrong more often: among steps at the same depth, too.
    for depth in range(DEPTHS):
        at_depth = [
            (row[depth], exact[depth])
            for problem, (texts, _, steps) in zip(problems, results, strict=True)
            for text, row in zip(texts, steps, strict=True)
            if len(exact := TASKS[problem.task].check_steps(problem, text)) == len(row) > depth
        ]
        assert auroc(*zip(*at_depth, strict=True)) > 0.7, f"step {depth + 1}"
    # Each looked only at what was at hand: the last token of each branch is all that was computed.
    assert sum(program.usage.probes for program in programs) == 20 * 12


KINDS = ("outcome", "process")


def test_best_of_n_and_a_beam_by_the_bundled_verifier(engine):
    verifier = Verifier.from_pretrained("reasoner-verifier")
    questions = [problem.question for problem in load_split("test", 4, seed=6)]
    method = BestOfN(6, verifier, params=PARAMS, extract=EXTRACT)
    first = engine.solve_many(questions, method)
    again = engine.solve_many(questions[:1], method)
    assert [p.score for p in again[0].paths] == [p.score for p in first[0].paths], "same bits"
    assert all(s.usage.probes == 6 and s.usage.delegated_tokens == 0 for s in first)
    beam = engine.solve(questions[0], StepBeam(2, 2, verifier, extract=EXTRACT))
    assert beam.answer and all(0 <= path.score <= 1 for path in beam.paths)
    assert engine.blocks_in_use == 0


def test_statistics_need_sampled_tokens(engine):
    verifier = Verifier.from_pretrained("reasoner-verifier")
    root = engine.prefill("countdown 94 from 11 9 5\n")
    [kid] = engine.fork(root)
    engine.extend(kid, tokens="11*9=99\n")
    with pytest.raises(ValueError, match="were not sampled"):
        engine.run_program(verifier([kid]))
    engine.prune([root, kid])
    assert engine.blocks_in_use == 0
