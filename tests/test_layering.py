"""Imports go downwards only, at module level, and without cycles."""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "parallel_decode"

LAYERS = [  # lowest first; a folder may import from the lines above its own
    {"_C"},
    {"kernels"},
    {"model"},
    {"engine"},
    {"speculation"},
    {"reasoning"},
    {"tasks"},  # the checkers: they score what a method made, and no method sees them
    {"questions"},
    {"__init__"},
    {"viewer", "server"},
    {"cli"},
    {"__main__"},
]
RANK = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}
LEAVES = {"tasks"}
IMPORTS_INSIDE_FUNCTIONS: set[tuple[str, str]] = set()
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "stuff"}


@dataclass(frozen=True)
class Import:
    """One imported name: `line` of `importer` asks for `target`, as an absolute dotted name."""

    importer: str
    line: int
    target: str
    at_module_level: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        parts = (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(source: str, importer: str, is_package: bool) -> Iterator[Import]:
    tree = ast.parse(source)
    # `try` for an optional package is fine; `if TYPE_CHECKING` is how cycles are hidden.
    at_module_level = {
        id(node)
        for top in tree.body
        for node in ([top] if not isinstance(top, ast.Try) else ast.walk(top))
    }
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = importer.split(".")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, base] if base else package)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            yield Import(importer, node.lineno, target, id(node) in at_module_level)


MODULES = {module_name(path): path for path in sources(PACKAGE, "kernels")}
IMPORTS = [
    found
    for name, path in MODULES.items()
    for found in read_imports(path.read_text(), name, path.stem == "__init__")
]


def imported_module(target: str) -> str | None:
    """The module of the package that holds `target`; None for the rest of the world."""
    if target.startswith(f"{PACKAGE}._C"):
        return f"{PACKAGE}._C"
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target or None


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_folder_has_a_layer():
    unknown = {folder(module) for module in MODULES} - RANK.keys()
    assert not unknown, f"give {sorted(unknown)} a line in LAYERS"


def test_imports_go_downwards():
    for found in IMPORTS:
        target = imported_module(found.target)
        if target is None or folder(target) == folder(found.importer):
            continue
        assert RANK[folder(target)] < RANK[folder(found.importer)], f"{found}, which is not below"


def test_leaves_import_nothing_of_the_package():
    for found in IMPORTS:
        target = imported_module(found.target)
        if folder(found.importer) in LEAVES and target is not None:
            assert folder(target) == folder(found.importer), str(found)


def test_no_cycles_between_modules():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        target = imported_module(found.target)
        if target is not None:
            graph[found.importer].add(target)
    # Raises CycleError, which names the modules of the cycle.
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_are_at_module_level():
    for found in IMPORTS:
        if (found.importer, found.target) not in IMPORTS_INSIDE_FUNCTIONS:
            assert found.at_module_level, f"{found} inside a function or a condition"


def test_kernels_is_no_top_level_name():
    for path in sources(PACKAGE, "kernels", "tests", "benchmarks", "examples"):
        importer = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for found in read_imports(path.read_text(), importer, path.stem == "__init__"):
            # A relative import inside kernels/ resolves to this name, too, and is right.
            if importer.split(".")[0] != "kernels":
                assert found.target.split(".")[0] != "kernels", str(found)


def test_names_say_what_is_inside():
    for path in sources(PACKAGE, "kernels", "tests", "benchmarks", "examples"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        assert not NAMES_THAT_SAY_NOTHING.intersection(parts), str(path.relative_to(ROOT))


def targets(source: str, importer: str, is_package: bool = False) -> list[tuple[str, bool]]:
    return [
        (found.target, found.at_module_level)
        for found in read_imports(source, importer, is_package)
    ]


def test_reading_imports():
    source = "from .plan import A\nfrom . import b\nfrom ..model import c\nimport d.e"
    expected = [
        ("parallel_decode.kernels.plan.A", True),
        ("parallel_decode.kernels.b", True),
        ("parallel_decode.model.c", True),
        ("d.e", True),
    ]
    assert targets(source, "parallel_decode.kernels.cpu") == expected
    assert targets(source, "parallel_decode.kernels", is_package=True) == expected
    assert targets("try:\n  import a\nexcept ImportError:\n  a = None", "m") == [("a", True)]
    assert targets("def f():\n  import a", "m") == [("a", False)]
    assert targets("if TYPE_CHECKING:\n  import a", "m") == [("a", False)]
