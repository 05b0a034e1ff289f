"""README's examples run as pasted; its tables, figure, tree and links are what the scripts make."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import figures, readme
from benchmarks.readme import RESULTS, ROOT
from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning import METHODS
from tests.tiny_model import tiny_engine

README = (ROOT / "README.md").read_text("utf-8")
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text("utf-8")
PAGES = ["README.md", "docs/design.md", "docs/methods.md"]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=240
    )


# ---- the pages as they are ----


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs_as_pasted(number: int, tmp_path: Path):
    done = run("-c", EXAMPLES[number], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_readme_is_up_to_date():
    done = run("-m", "benchmarks.readme", "--check")
    assert done.returncode == 0, done.stderr


def test_api_reference_is_up_to_date():
    done = run("docs/make_api.py", "--check")
    assert done.returncode == 0, done.stderr


def test_list_of_methods_is_up_to_date():
    done = run("docs/make_methods.py", "--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_list_of_methods_is_noticed(tmp_path: Path):
    page = tmp_path / "methods.md"
    page.write_text(METHODS_PAGE.replace("| `Rebase` |", "| `Debase` |"), "utf-8")
    args = ("docs/make_methods.py", "--page", str(page))
    assert run(*args, "--check").returncode == 1
    assert run(*args).returncode == 0
    assert page.read_text("utf-8") == METHODS_PAGE


def test_list_names_every_method():
    named = re.findall(r"^\| `(\w+)` \|", METHODS_PAGE, re.MULTILINE)
    assert sorted(named) == sorted(method.__name__ for method in METHODS)


def test_method_of_the_guide_is_short_and_runs_as_pasted(tmp_path: Path):
    [guide] = re.findall(r"```python\n(.*?)```", METHODS_PAGE, re.DOTALL)
    assert len(guide.splitlines()) <= 40
    done = run("-c", guide, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_method_of_the_guide_halves_its_branches_and_leaks_none():
    [guide] = re.findall(r"```python\n(.*?)```", METHODS_PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "guide"}
    sys.modules["guide"] = ModuleType("guide")  # dataclasses look their module up
    try:
        exec(guide.partition("engine = ")[0], names)
    finally:
        del sys.modules["guide"]
    engine = tiny_engine()
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    solution = engine.solve("hello", names["Halving"](16, 4, params))
    # 16 branches draw 4 tokens, 8 of them 4 more, 4 of them the last 4.
    assert solution.usage.generated_tokens == 16 * 4 + 8 * 4 + 4 * 4
    assert len(solution.paths) == 2
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = (ROOT / page).read_text("utf-8")
    missing = {
        target
        for target in re.findall(r"\]\(([^)#]+)\)", text)
        if not target.startswith("http") and not (ROOT / page).parent.joinpath(target).exists()
    }
    if not (RESULTS / "decode.json").is_file():
        missing.discard("docs/decode.svg")  # drawn from that file
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_names_in_code_exist(page: str):
    """Paths, modules and make targets that the text names in `code`."""
    text = (ROOT / page).read_text("utf-8")
    named = " ".join(re.findall(r"`([^`\n]+)`", text)) + " ".join(
        re.findall(r"```\n(.*?)```", text, re.DOTALL)
    )
    for target in re.findall(r"\bmake (\w+)", named):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for module in re.findall(r"python -m benchmarks\.(\w+)", named):
        assert (ROOT / "benchmarks" / f"{module}.py").is_file(), module
    for path in re.findall(r"\b(?:examples|tests|docs|csrc|kernels)/[\w./]+", named):
        assert (ROOT / path).exists(), path


def test_tree_names_every_source_file_and_no_other():
    [tree] = re.findall(r"<!-- tree -->\n```text\n(.*?)```", README, re.DOTALL)
    named, folders = set(), []
    for line in tree.splitlines():
        entry = line.split("  ", 1)[0] if not line.startswith(" ") else line
        name = entry.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            named.add("/".join(folders))
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("parallel_decode", "kernels", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in readme.SOURCES and path.name != "__init__.py"
    }
    assert files <= named, files - named
    assert all((ROOT / name).is_file() for name in named)


def test_every_file_of_the_package_has_a_comment():
    for folder in ("parallel_decode", "kernels", "csrc", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".pyi", ".h", ".cpp"}:
                assert readme.first_sentence(path), path


# ---- the scripts on made-up results ----


def decode_report() -> dict[str, Any]:
    rows = [
        {
            "engine": engine,
            "dtype": "float32",
            "branches": branches,
            "prefix": prefix,
            "suffix": 32,
            "decode_tokens_per_s": 10.0 * branches,
            "prefill_tokens_per_s": 1234.5,
            "kv_bytes": 2**20 * branches,
            "ratio_to_parallel_decode": 0.5,
        }
        for engine in ("parallel_decode", "transformers")
        for branches, prefix in ((1, 1024), (4, 1024), (32, 1024), (4, 256))
    ]
    return {
        "benchmark": "decode",
        "commit": "0123456789abcdef-dirty",
        "machine": {"cpu": "a processor", "cores": 2, "isa": ["avx2"], "gpu": None},
        "versions": {"python": "3.11", "torch": "2.13", "transformers": None},
        "conditions": {"model": "smollm2", "threads": 2, "quick": False},
        "rows": rows,
    }


def test_conditions_stand_above_the_table(tmp_path: Path):
    path = tmp_path / "decode.json"
    path.write_text(json.dumps(decode_report()))
    block = readme.results_block("decode", path)
    above, _, table = block.partition("\n\n")
    for text in ("a processor, 2 cores, avx2", "python 3.11, torch 2.13", "0123456789ab-dirty"):
        assert text in above
    # What is the same in all rows is said once.
    assert "dtype float32" in above and "dtype" not in table
    assert "suffix 32" in above and "prefix" in table.splitlines()[0]
    assert "KV, MiB" in table.splitlines()[0] and "| 32 |" in table
    assert len(table.splitlines()) == 2 + 8


def test_a_quick_run_says_so(tmp_path: Path):
    report = decode_report()
    report["conditions"]["quick"] = True
    path = tmp_path / "decode.json"
    path.write_text(json.dumps(report))
    assert "--quick" in readme.results_block("decode", path)


def test_rows_with_different_keys(tmp_path: Path):
    report = {"rows": [{"problems": "chain", "pass_at_1": 0.5}, {"problems": "all", "gain": 0.25}]}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(report))
    lines = readme.results_block("eval", path).splitlines()
    assert lines[-3:] == ["| --- | ---: | ---: |", "| chain | 0.5 |  |", "| all |  | 0.25 |"]
    assert "pass@1" in lines[-4]


def test_missing_results_say_how_to_make_them(tmp_path: Path):
    assert "python -m benchmarks.memory --json" in readme.results_block(
        "memory", tmp_path / "memory.json"
    )


def test_check_notices_a_change_and_writes_nothing(tmp_path: Path):
    page, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    page.write_text(README)
    args = ("-m", "benchmarks.readme", "--readme", str(page), "--results", str(results))
    (results / "decode.json").write_text(json.dumps(decode_report()))
    assert run(*args, "--check").returncode == 1
    assert page.read_text() == README
    assert run(*args).returncode == 0
    assert "0123456789ab-dirty" in page.read_text()
    assert run(*args, "--check").returncode == 0


@pytest.mark.parametrize(
    "page, message",
    [
        ("", "needs the marks"),
        ("<!-- a -->\n", "needs the marks"),
        ("<!-- end of a -->\n<!-- a -->", "stands before"),
        ("<!-- a -->\n<!-- end of a -->\n<!-- b -->\n<!-- end of b -->", "unknown blocks"),
    ],
)
def test_bad_marks(page: str, message: str):
    with pytest.raises(ValueError, match=message):
        readme.fill(page, {"a": "text"})


def test_fill_replaces_only_what_is_between_the_marks():
    page = "head\n<!-- a -->\nold\n<!-- end of a -->\ntail"
    filled = readme.fill(page, {"a": "new"})
    assert filled == "head\n<!-- a -->\nnew\n<!-- end of a -->\ntail"
    assert readme.fill(filled, {"a": "new"}) == filled


def test_figure_is_the_same_every_time(tmp_path: Path):
    for name in ("one.svg", "two.svg"):
        figures.draw(decode_report(), tmp_path / name)
    text = (tmp_path / "one.svg").read_text("utf-8")
    assert text == (tmp_path / "two.svg").read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")


def test_figure_takes_the_numbers_with_the_most_points():
    over_branches = figures.panel_of(decode_report()["rows"], "branches", "prefix")
    assert over_branches.at == 1024
    assert set(over_branches.lines) == {"parallel_decode float32", "transformers float32"}
    for rows in over_branches.lines.values():
        assert [row["branches"] for row in rows] == [1, 4, 32]
    over_prefixes = figures.panel_of(decode_report()["rows"], "prefix", "branches")
    assert over_prefixes.at == 4
    for rows in over_prefixes.lines.values():
        assert [row["prefix"] for row in rows] == [256, 1024]


def test_figure_leaves_out_trees_and_prompts_alone():
    rows = decode_report()["rows"]
    odd = [
        dict(rows[0], branches=64, tree="512, 4 x 64"),
        dict(rows[0], branches=16, decode_tokens_per_s=None),
    ]
    assert figures.panel_of([*rows, *odd], "branches", "prefix").points == {1, 4, 32}


def test_figure_names_weights_and_cache():
    row = decode_report()["rows"][0]
    assert figures.label_of(dict(row, kv_dtype="float32")) == "parallel_decode float32"
    assert figures.label_of(dict(row, dtype="int8", kv_dtype="float16")) == (
        "parallel_decode int8:float16"
    )
    peer = dict(row, engine="llama.cpp", dtype="int4", configuration="Q4_0, split")
    assert figures.label_of(dict(peer, kv_dtype="float16")) == "llama.cpp int4"
    assert figures.label_of(dict(peer, kv_dtype="int8")) == "llama.cpp int4"


def test_rows_for_the_figure_alone_are_not_in_the_table(tmp_path: Path):
    report = decode_report()
    for row in report["rows"]:
        row["in_table"] = row["prefix"] == 1024
    report["conditions"]["command"] = "python -m benchmarks.decode --peers openvino"
    path = tmp_path / "decode.json"
    path.write_text(json.dumps(report))
    above, _, table = readme.results_block("decode", path).partition("\n\n")
    assert len(table.splitlines()) == 2 + 6 and "in table" not in table
    assert "Command: `python -m benchmarks.decode --peers openvino --json" in above


def test_figure_of_two_dtypes_and_of_one_point(tmp_path: Path):
    report = decode_report()
    report["rows"] = [dict(report["rows"][0], dtype=dtype) for dtype in ("float32", "bfloat16")]
    figures.draw(report, tmp_path / "figure.svg")
    lines = figures.panel_of(report["rows"], "branches", "prefix").lines
    assert list(lines) == ["parallel_decode float32", "parallel_decode bfloat16"]


def test_figure_of_nothing_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="no rows"):
        figures.draw({"rows": []}, tmp_path / "figure.svg")
