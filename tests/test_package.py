"""What a user gets: the files of a wheel, and how long the import takes."""

import os
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import parallel_decode

ROOT = Path(__file__).parents[1]
FOLDERS = {"parallel_decode": "parallel_decode", "kernels": "parallel_decode/kernels"}

# Processor time: on a loaded machine the wall clock measures the neighbours.
TIME_IMPORT = """
import torch, time
start = time.process_time()
import parallel_decode
print(time.process_time() - start)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of this checkout. Objects that were compiled before are taken from build/."""
    out = tmp_path_factory.mktemp("wheel")
    build = ["build", "--build-lib", str(out / "lib")]
    bdist_wheel = ["bdist_wheel", "--bdist-dir", str(out / "tree"), "--dist-dir", str(out)]
    egg_info = ["egg_info", "--egg-base", str(out)]
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", *egg_info, *build, *bdist_wheel],
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    [path] = out.glob("*.whl")
    return zipfile.ZipFile(path)


def source_files(*suffixes: str) -> set[str]:
    return {
        f"{installed}/{path.relative_to(ROOT / folder)}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }


def test_wheel_holds_one_top_level_name(wheel: zipfile.ZipFile):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert "kernels" not in top
    assert {name for name in top if not name.endswith(".dist-info")} == {"parallel_decode"}


def test_wheel_holds_every_source_file(wheel: zipfile.ZipFile):
    installed = {name for name in wheel.namelist() if name.endswith((".py", ".pyi"))}
    assert installed == source_files(".py", ".pyi")


def test_wheel_holds_data_and_licence(wheel: zipfile.ZipFile):
    names = wheel.namelist()
    assert "parallel_decode/py.typed" in names
    assert any(name.startswith("parallel_decode/_C.") for name in names)
    assert any(name.endswith("/LICENSE") for name in names)
    assets = ROOT / "parallel_decode" / "assets"
    for path in assets.rglob("*"):
        if path.is_file():
            assert str(path.relative_to(ROOT)) in names
    assert source_files(".html", ".js", ".css") <= set(names)


def test_wheel_runs_where_it_is_unpacked(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path / "site")
    code = (
        "import parallel_decode as p, parallel_decode.kernels, parallel_decode._C\n"
        "print(p.__file__, p.kernels.__file__, p._C.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout.split()
    for path in found:
        assert Path(path).is_relative_to(tmp_path / "site")


def test_console_script(wheel: zipfile.ZipFile):
    [path] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert b"parallel-decode = parallel_decode.cli.main:main" in wheel.read(path)


def test_import_takes_less_than_a_second():
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", TIME_IMPORT], text=True, timeout=120))
        for _ in range(3)
    ]
    assert statistics.median(seconds) < 1.0, seconds


def test_version():
    assert parallel_decode.__version__.count(".") == 2


def test_type_hints_are_marked():
    assert (Path(parallel_decode.__file__).parent / "py.typed").is_file()
