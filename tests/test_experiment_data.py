"""Experiments as programs, on questions that somebody brings: a JSON Lines file, a task of
reasoning-gym."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from parallel_decode.tasks import load_split

ROOT = Path(__file__).resolve().parent.parent
HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None
NUM_QUESTIONS = 2


def run(name: str, data: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    report = ["--json", str(folder / "report.json"), "--figure", str(folder / "figure.svg")]
    few = ["--questions", str(NUM_QUESTIONS), "--samples", "4", "--threads", "1"]
    pools = ["--pools", str(folder)]
    command = [sys.executable, "-m", f"benchmarks.experiments.{name}", "--quick", "--data", data]
    return subprocess.run(
        [*command, *few, *pools, *report, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def written(path: Path, count: int) -> Path:
    """Questions that the reasoner answers, with a field of somebody's own."""
    problems = load_split("test", count, 0, {("chain", 2): 1})
    lines = [{"question": p.question, "answer": p.answer, "id": p.difficulty} for p in problems]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


@pytest.mark.parametrize("name", ["self_consistency", "debate"])
def test_a_file_of_questions(tmp_path, name):
    """One more than is asked for: peers of another question are a control of the debate."""
    file = written(tmp_path / "mine.jsonl", NUM_QUESTIONS + 1)
    done = run(name, str(file), tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["conditions"]["data"] == str(file)
    assert report["conditions"]["questions"] == NUM_QUESTIONS
    assert max(row.get("pass_at_n", row.get("accuracy", 0)) for row in report["rows"]) > 0
    assert (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.skipif(not HAS_GYM, reason="reasoning-gym is not installed")
def test_a_task_of_reasoning_gym(tmp_path):
    """The reasoner was not taught it: the run ends, and says that nothing is right."""
    done = run("self_consistency", "gym:chain_sum", tmp_path, "--max-tokens", "32")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "report.json").read_text("utf-8"))["rows"]
    assert {row["group"] for row in rows} == {"all", "wrong answer leads"}
    assert all(row["pass_at_n"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{folder}/none.jsonl", "no questions"),
        ("{folder}/mine.jsonl", "has 1 questions, 2 are asked"),
    ],
)
def test_what_is_not_there(tmp_path, data, message):
    written(tmp_path / "mine.jsonl", 1)
    done = run("self_consistency", data.format(folder=tmp_path), tmp_path)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "report.json").exists()
