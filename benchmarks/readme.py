"""Fills the marked blocks of README.md: results from benchmarks/results, and the tree of files.

`python -m benchmarks.readme` rewrites them, `--check` exits with 1 where they are not up to date.
A block stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import format_value

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"

COMMANDS = {
    "memory": "python -m benchmarks.memory",
    "peak_memory": "python -m benchmarks.peak_memory",
    "decode": "python -m benchmarks.decode --peers llama.cpp,openvino,transformers",
    "kernels": "python -m benchmarks.kernels",
    "quality": "python -m benchmarks.quality",
    "equality": "python -m benchmarks.equality",
    "parity": "python -m benchmarks.parity",
    "eval": "python -m benchmarks.eval",
    "plan": "python -m benchmarks.plan",
    "speculation": "python -m benchmarks.speculation",
    "controller": "python -m benchmarks.controller",
    "lossless": "python -m benchmarks.lossless",
    "verification": "python -m benchmarks.verification",
    "draft_shapes": "python -m benchmarks.draft_shapes",
    "speculation_peers": "python -m benchmarks.speculation_peers",
    "aot": "python -m benchmarks.aot",
}
# Columns that say what was run: where all rows agree, they stand above the table.
CONDITIONS = {
    *("model", "dtype", "kv_dtype", "backend", "branches", "prefix", "tree", "suffix", "tokens"),
    *("n", "questions", "configuration"),
    *("split", "task", "temperature", "threads", "method"),
}
RATIOS = {
    "ratio_to_parallel_decode": "× parallel_decode",
    "ratio_to_llama_cpp": "× llama.cpp",
    "ratio_to_llama_cpp_same_width": "× llama.cpp, same width",
}
# Top-level names of the tree, and comments where the files themselves say nothing.
TREE = ("parallel_decode", "kernels", "csrc", "benchmarks", "examples", "tests", "docs")
ROOT_FILES = {
    "setup.py": "",
    "pyproject.toml": "dependencies, extras, and the settings of pytest, ruff and mypy",
    "Makefile": "env, peers, demo, test, lint, sanitize, format, wheel, clean",
}
COMMENTS = {
    "parallel_decode/assets": "models inside the package, each with a model card",
    "kernels": "installed as `parallel_decode.kernels` only",
    "csrc": "C++17, installed as `parallel_decode._C`",
    "examples": "programs of the repository, not installed",
    "tests": "`make test` runs all of them",
    "benchmarks/results": "the runs from which the tables and the figure are made",
    "docs/decode.svg": "the figure at the top, from benchmarks/results/decode.json",
}
LONGEST_COMMENT = 100
MOST_ROWS = 24
"""Of a table that is shown unfolded."""
SOURCES = {".py", ".pyi", ".h", ".cpp", ".html", ".js", ".css"}


# ---- results ----


def results_block(name: str, path: Path) -> str:
    """Machine, versions, commit, conditions and command, and below them the table of the rows."""
    command, to_json = COMMANDS[name], f"--json benchmarks/results/{name}.json"
    if not path.is_file():
        return f"Not measured yet. Make it with `{command} {to_json}`."
    report = json.loads(path.read_text("utf-8"))
    rows = [dict(row) for row in report.get("rows", [])]
    rows = [row for row in rows if row.pop("in_table", True)]
    conditions = dict(report.get("conditions", {}))
    command = conditions.pop("command", command)
    if conditions.pop("quick", False):
        command += " --quick"
    for key in sorted(CONDITIONS & {key for row in rows for key in row}):
        values = {json.dumps(row.get(key)) for row in rows}
        if len(rows) > 1 and len(values) == 1:
            if rows[0][key] is not None:
                conditions[key] = rows[0][key]
            for row in rows:
                del row[key]
    lines = [*provenance(report, conditions), f"Command: `{command} {to_json}`", ""]
    table = markdown_table(rows)
    if len(rows) > MOST_ROWS:
        table = [f"<details><summary>{len(rows)} rows</summary>", "", *table, "", "</details>"]
    return "\n".join([*lines, *table])


def provenance(report: Mapping[str, Any], conditions: Mapping[str, Any]) -> list[str]:
    """Lines that say where, by what and how a report was made."""
    return [
        f"Machine: {_machine(report.get('machine', {}))}.  ",
        f"Versions: {_versions(report.get('versions', {}))}; commit {_commit(report)}.  ",
        f"Conditions: {_conditions(conditions)}.  ",
    ]


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [str(machine.get("cpu") or "unknown processor")]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if machine.get("isa"):
        parts.append(" ".join(machine["isa"]))
    if machine.get("memory_gib"):
        parts.append(f"{machine['memory_gib']} GiB")
    if machine.get("gpu"):
        parts.append(str(machine["gpu"]))
    if machine.get("system"):
        parts.append(str(machine["system"]))
    return ", ".join(parts)


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _commit(report: Mapping[str, Any]) -> str:
    commit = str(report.get("commit") or "unknown")
    number, dash, rest = commit.partition("-")
    return f"{number[:12]}{dash}{rest}"


def _conditions(conditions: Mapping[str, Any]) -> str:
    texts = [f"{_words(key)} {_cell(key, value)}" for key, value in conditions.items()]
    return "; ".join(texts) or "none"


def markdown_table(rows: list[dict[str, Any]]) -> list[str]:
    """Numbers to the right, texts to the left; bytes in MiB."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if not keys:
        return ["(no rows)"]
    texts = {key for key in keys if any(isinstance(row.get(key), str) for row in rows)}
    return [
        "| " + " | ".join(_words(key) for key in keys) + " |",
        "| " + " | ".join("---" if key in texts else "---:" for key in keys) + " |",
        *("| " + " | ".join(_cell(key, row.get(key)) for key in keys) + " |" for row in rows),
    ]


def _words(key: str) -> str:
    """`kv_bytes_floor` -> "KV floor, MiB", `decode_tokens_per_s` -> "decode tokens/s"."""
    if key in RATIOS:
        return RATIOS[key]
    unit = ", MiB" if "bytes" in key.split("_") and not key.endswith("_ratio") else ""
    text = key.replace("_per_s", "/s").replace("bytes", "").replace("_", " ")
    text = re.sub(r"\bus$", ", µs", text).replace(" ,", ",").replace(" at ", "@")
    text = text.removeprefix(", ")  # a time and nothing else
    return re.sub(r"\bkv\b", "KV", " ".join(text.split())) + unit


def _cell(key: str, value: Any) -> str:
    if _words(key).endswith(", MiB") and isinstance(value, int | float):
        value = value / 2**20
    if isinstance(value, float) and 100 <= abs(value) < 1000:
        value = round(value, 1)
    return format_value(value).replace("|", "\\|").replace("\n", " ")


# ---- tree ----


def tree_block(root: Path = ROOT) -> str:
    """Every source file with the first sentence of its own documentation."""
    lines = [line for name in TREE for line in _folder_lines(root / name, root, 0)]
    lines += [(name, text or first_sentence(root / name)) for name, text in ROOT_FILES.items()]
    width = max(len(name) for name, _ in lines) + 2
    body = [f"{name:{width}}{comment}".rstrip() for name, comment in lines]
    return "\n".join(["```text", *body, "```"])


def _folder_lines(folder: Path, root: Path, depth: int) -> list[tuple[str, str]]:
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__pyc")))
    init, name = folder / "__init__.py", folder.relative_to(root).as_posix()
    inner = [
        ("  " * (depth + 1) + path.name, _comment(path, root))
        for path in paths
        if path.is_file() and path != init and _is_listed(path, root)
    ]
    for path in paths:
        inner += _folder_lines(path, root, depth + 1)
    if not inner and name not in COMMENTS:
        return []
    said = "; ".join(text for text in (first_sentence(init), COMMENTS.get(name)) if text)
    return [("  " * depth + f"{folder.name}/", said), *inner]


def _is_listed(path: Path, root: Path) -> bool:
    return path.suffix in SOURCES or path.parent == root / "docs"


def _comment(path: Path, root: Path) -> str:
    return COMMENTS.get(path.relative_to(root).as_posix()) or first_sentence(path)


def first_sentence(path: Path) -> str:
    """Of a Python module's docstring, a C++ file's first comment, a Markdown file's title."""
    if not path.is_file():
        return ""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text.partition("\n")[0].lstrip("# ")
    if path.suffix in {".py", ".pyi"}:
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"(?:<!doctype html>\s*)?(?:<!--|/\*+|//)", text, re.IGNORECASE)
        if comment is None:
            header = path.with_suffix(".h")
            return f"implements {header.name}" if path.suffix == ".cpp" and header != path else ""
        kept = text[comment.end() :]
        if comment[0].endswith("//"):
            block = re.match(r"[^\n]*(?:\n//[^\n]*)*", kept)
            said = re.sub(r"\n// ?", "\n", block[0] if block else "")
        else:
            said = re.split(r"-->|\*/", kept)[0]
    paragraph = " ".join(re.split(r"\n\s*\n", said.strip())[0].split())
    sentence = re.split(r"(?<=[^. ]\.)\s+(?=[A-Z`])", paragraph)[0].rstrip(".:")
    # A long one ends where its last clause begins.
    clauses = re.match(rf".{{,{LONGEST_COMMENT}}}(?=[,:;] )", sentence)
    return clauses[0] if clauses and len(sentence) > LONGEST_COMMENT else sentence


# ---- README ----


def fill(readme: str, blocks: Mapping[str, str]) -> str:
    """`readme` with the text between each block's marks replaced.

    Raises:
        ValueError: a mark is missing, or there is one that no block belongs to.
    """
    for name, text in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise ValueError(f"README.md needs the marks {begin} and {end} once each")
        head, rest = readme.split(begin)
        if end not in rest:
            raise ValueError(f"README.md: {end} stands before {begin}")
        readme = f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    unknown = set(re.findall(r"<!-- end of (\w+) -->", readme)) - set(blocks)
    if unknown:
        raise ValueError(f"README.md has marks of unknown blocks: {sorted(unknown)}")
    return readme


def filled_readme(readme: str, results: Path = RESULTS, root: Path = ROOT) -> str:
    blocks = {name: results_block(name, results / f"{name}.json") for name in COMMANDS}
    return fill(readme, {**blocks, "tree": tree_block(root)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    old = args.readme.read_text("utf-8")
    new = filled_readme(old, args.results)
    if args.check and new != old:
        sys.exit(f"{args.readme} is not up to date: run python -m benchmarks.readme")
    if new != old:
        args.readme.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
