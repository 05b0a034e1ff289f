"""Where a figure was measured: the processor, the memory, the versions, the commit."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")

# What the kernels can use; the rest of the processor's flags says nothing about speed here.
ISA_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def _proc_fields(path: Path) -> dict[str, str]:
    """`name : value` lines of a /proc file; the first of each name, nothing where there is none."""
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
    return fields


def usable_cores() -> int:
    """Cores that this process may run on: in a container or under taskset, not all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, object]:
    cpu = _proc_fields(CPUINFO)
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    memory = _proc_fields(MEMINFO).get("MemTotal")
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _compiler() -> str | None:
    """First line of `c++ --version` for the compiler that builds the extension here."""
    command = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if shutil.which(command) is None:
        return None
    printed = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    return printed.partition("\n")[0] or None


def versions(peers: tuple[str, ...] = ()) -> dict[str, str | None]:
    """Versions of what was measured and of the `peers` it is compared with; None if not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "parallel_decode", "numpy", *peers):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "compiler": _compiler()}


def commit(root: Path = ROOT) -> str | None:
    """Hash of HEAD, with "-dirty" if a file differs from it; None outside a git checkout.

    Reports of earlier runs are no part of what is measured.
    """

    def git(*args: str) -> str | None:
        if shutil.which("git") is None:
            return None
        run = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return None if head is None else f"{head}-dirty" if changed else head
