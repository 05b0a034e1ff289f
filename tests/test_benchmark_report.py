"""The frame of the benchmarks: arguments, reports, the machine's description."""

import io
import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import machine as machine_module
from benchmarks.machine import commit, machine, usable_cores, versions
from benchmarks.report import Report, argument_parser, format_value


def write(report: Report, path: Path) -> tuple[dict, str]:
    printed = io.StringIO()
    report.finish(path, Console(file=printed, width=200))
    return json.loads(path.read_text()), printed.getvalue()


def test_report_round_trip(tmp_path: Path):
    report = Report("decode", {"model": "smollm2", "threads": 2, "quick": True}, peers=("pytest",))
    report.add(engine="ours", decode_tokens_per_s=12345.678, kv_bytes=1 << 20)
    report.add(engine="peer", decode_tokens_per_s=1.5, shared=False)
    written, printed = write(report, tmp_path / "new" / "decode.json")
    keys = ["benchmark", "commit", "machine", "versions", "conditions", "rows"]
    assert list(written) == keys
    assert written["rows"] == report.rows
    assert written["conditions"] == report.conditions
    assert written["versions"]["pytest"] == pytest.__version__
    for text in ("quick=yes", "decode_tokens_per_s", "12,346", "1,048,576", "1.5", "no"):
        assert text in printed


def test_without_a_path_nothing_is_written(tmp_path: Path):
    report = Report("empty", {})
    report.finish(None, Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [[1], {"a": 1}, float("nan"), float("inf"), b"x"], ids=repr)
def test_rows_and_conditions_are_flat_and_finite(value: object):
    report = Report("decode", {})
    with pytest.raises(ValueError, match="row 0 of decode: latency"):
        report.add(latency=value)
    assert report.rows == []
    with pytest.raises(ValueError, match="conditions of decode: latency"):
        Report("decode", {"latency": value}).as_dict()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, ""), (True, "yes"), (False, "no"), ("fp16", "fp16")),
        *((0, "0"), (1234567, "1,234,567"), (0.00012346, "0.0001235"), (999.94, "999.9")),
        *((9999.4, "9,999"), (-1234567.8, "-1,234,568")),
    ],
)
def test_format_value(value: object, text: str):
    assert format_value(value) == text


def test_arguments():
    args = argument_parser("what").parse_args(["--quick", "--json", "out/x.json", "--threads", "3"])
    assert (args.quick, args.json, args.threads) == (True, Path("out/x.json"), 3)
    args = argument_parser("what").parse_args([])
    assert (args.quick, args.json) == (False, None)
    assert args.threads >= 1


def test_machine_is_described():
    found = machine()
    assert found["cpu"]
    assert found["cores"] == usable_cores() >= 1
    json.dumps(found, allow_nan=False)
    assert versions(("no-such-package-here",))["no-such-package-here"] is None
    assert versions()["torch"]


def test_machine_reads_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 fma avx512f\n\nprocessor : 1\n")
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(machine_module, "CPUINFO", cpuinfo)
    monkeypatch.setattr(machine_module, "MEMINFO", meminfo)
    found = machine()
    assert found["cpu"] == "Some CPU"
    assert found["isa"] == ["fma", "avx2", "avx512f"]
    assert found["memory_gib"] == 16.0
    monkeypatch.setattr(machine_module, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(machine_module, "MEMINFO", tmp_path / "absent")
    found = machine()
    assert found["isa"] == []
    assert found["memory_gib"] is None


def test_commit_says_when_the_tree_differs(tmp_path: Path):
    def git(*args: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *args], cwd=tmp_path, check=True, capture_output=True)

    assert commit(tmp_path / "absent") is None
    git("init")
    (tmp_path / "code").write_text("1")
    git("add", "code")
    git("commit", "-m", "x")
    clean = commit(tmp_path)
    assert clean is not None and len(clean) == 40
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "decode.json").write_text("{}")
    assert commit(tmp_path) == clean
    (tmp_path / "code").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"
