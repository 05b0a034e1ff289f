"""Everything that a card has to show, in one command under ten minutes; nothing is downloaded.

`python benchmarks/gpu_gate.py [--dry-run] [--out FOLDER] [--seconds N]`

First the kernel tests and the engine's tests of the Triton backend run on the card, in bfloat16 and
float16; then `benchmarks.gpu_kernels` and `benchmarks.gpu_decode` measure. The result is one file,
benchmarks/results/gpu/<card>.json, and a table. A stage that fails or takes too long leaves its
output in the file, and the next one starts. The package need not be installed: where its C++ part
is missing it is built here, with g++ and pybind11.

`--dry-run` goes the same way at tiny sizes, on a CPU in Triton's interpreter, and writes no result.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VIEW = ROOT / "build/gate"
TESTS = (
    "tests/test_branch_attention.py",
    "tests/test_triton_ops.py",
    "tests/test_verify.py",
    "tests/test_triton_engine.py",
)
DRY_TESTS = "ragged or merge or random_forests or greedy"


def environment(dry_run: bool) -> dict[str, str]:
    """The parallel_decode of this checkout: as it is installed, or as links to its folders."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(VIEW), str(ROOT), env.get("PYTHONPATH", "")])
    if dry_run:
        env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    else:
        env.pop("TRITON_INTERPRET", None)
    package = VIEW / "parallel_decode"
    package.mkdir(parents=True, exist_ok=True)
    for source in (*(ROOT / "parallel_decode").iterdir(), ROOT / "kernels"):
        link = package / source.name
        if source.name != "__pycache__" and not link.exists():
            link.symlink_to(source)
    if not any(package.glob("_C*.so")) or not imports(env):
        run([sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(VIEW)], env)
    return env


def imports(env: dict[str, str]) -> bool:
    command = [sys.executable, "-c", "import parallel_decode._C"]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True).returncode == 0


def run(command: list[str], env: dict[str, str], timeout: float | None = None) -> tuple[int, str]:
    """(exit status, output); 124 where it took too long."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(
                command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=timeout
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        output.seek(0)
        return code, output.read()


def stages(dry_run: bool, folder: Path) -> list[tuple[str, list[str], float]]:
    """(name, command, its share of the time)"""
    python = sys.executable
    dry = ["--dry-run"] if dry_run else []
    tests = [name for name in TESTS if (ROOT / name).exists()]
    chosen = ["-k", DRY_TESTS] if dry_run else []
    return [
        ("tests", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *tests], 0.35),
        (
            "kernels",
            [python, "-m", "benchmarks.gpu_kernels", *dry, "--json", f"{folder}/kernels.json"],
            0.4,
        ),
        (
            "decode",
            [python, "-m", "benchmarks.gpu_decode", *dry, "--json", f"{folder}/decode.json"],
            0.25,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu")
    parser.add_argument("--seconds", type=float, default=560, help="for all stages")
    args = parser.parse_args()
    begin = time.perf_counter()
    env = environment(args.dry_run)
    result: dict[str, object] = {}
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        left = args.seconds - (time.perf_counter() - begin)
        for stage, command, share in stages(args.dry_run, folder):
            print(f"gate: {stage} ...", flush=True)
            start = time.perf_counter()
            code, output = run(command, env, timeout=share * left)
            seconds = round(time.perf_counter() - start, 1)
            print(output, flush=True)
            entry: dict[str, object] = {"exit_status": code, "seconds": seconds}
            counts = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed)", output)}
            report = folder / f"{stage}.json"
            if stage == "tests":
                entry |= counts
                if code == 0 and not counts.get("passed"):
                    code = 1
            elif report.exists():
                entry["report"] = json.loads(report.read_text())
            if code:
                failed.append(stage)
                entry["output_tail"] = output[-4000:]
            result[stage] = entry
            if not args.dry_run:
                write(args.out, result)
    print(
        f"gate: {time.perf_counter() - begin:.0f} s, {'failed: ' if failed else 'all right'}",
        end="",
    )
    print(", ".join(failed))
    if failed:
        raise SystemExit(1)


def write(folder: Path, result: dict[str, object]) -> None:
    torch = importlib.import_module("torch")
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
