"""docs/experiments.md: made from the reports that are there, and up to date."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.experiments import page

GAINS = {
    "better": (0.2, 0.1, 0.3),
    "worse": (-0.2, -0.3, -0.1),
    "alike": (0.01, -0.1, 0.1),
    "majority": (0.0, 0.0, 0.0),
}


def row(method: str, n: int = 16) -> dict:
    gain, low, high = GAINS[method]
    gains = {"gain": gain, "gain_low": low, "gain_high": high}
    return {"method": method, "n": n, "accuracy": 0.5, "generated_tokens": 10.0, **gains}


def write(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    report = {"commit": "0" * 40, "conditions": {"quick": True}, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(report))


def test_the_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.experiments.page", "--check"],
        cwd=page.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_what_won_and_what_lost(tmp_path: Path):
    write(tmp_path / "r", "aggregation", [row(method) for method in GAINS])
    (tmp_path / "aggregation.svg").write_text("<svg/>")
    text = page.page(tmp_path / "r", tmp_path, tmp_path / "docs" / "page.md")
    assert "- Won: better +0.200 (+0.100 to +0.300)." in text
    assert "- Lost: worse -0.200 (-0.300 to -0.100)." in text
    assert "- Not told apart: alike +0.010 (-0.100 to +0.100)." in text
    assert "](../aggregation.svg)" in text and "aggregation --quick`" in text
    assert "## Verifiers" not in text


def test_no_reports_no_page(tmp_path: Path):
    assert page.page(tmp_path) == ""


def test_a_page_that_is_old_is_told_of(tmp_path: Path):
    write(tmp_path / "r", "aggregation", [row("better")])
    command = [sys.executable, "-m", "benchmarks.experiments.page"]
    command += ["--results", str(tmp_path / "r"), "--page", str(tmp_path / "page.md")]

    def run(*more: str) -> int:
        done = subprocess.run([*command, *more], cwd=page.ROOT, capture_output=True, timeout=60)
        return done.returncode

    assert run("--check") == 1 and not (tmp_path / "page.md").exists()
    assert run() == 0 and run("--check") == 0
    write(tmp_path / "r", "aggregation", [row("worse")])
    assert run("--check") == 1
