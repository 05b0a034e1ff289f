"""Ahead-of-time compilation: what is read of the code, and kernels no worse than before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.aot import faults, regressions
from benchmarks.kernel_variants import quick_variants, variants
from benchmarks.machine_code import TARGETS, MachineCode, _nvidia_load_bits, _occupancy
from parallel_decode.kernels.launch import H100

BASELINE = Path(__file__).parents[1] / "benchmarks/results/aot.json"
GOOD = MachineCode(128, 0, 65536, "mma.sync", 128, 0.25)


def test_kernels_are_no_worse_than_the_committed_run():
    """In a process of its own: here the interpreter stands in for the compiler."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot", "--quick", "--baseline", str(BASELINE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_run_is_whole_and_clean():
    rows = json.loads(BASELINE.read_text())["rows"]
    wanted = {
        (variant.name, variant.config, target.name)
        for target in TARGETS.values()
        for variant in variants(target.card)
    }
    assert {(row["kernel"], row["config"], row["target"]) for row in rows} == wanted
    assert all(row["compiled"] and row["spills"] == 0 for row in rows)


def test_variants_differ_and_name_all_arguments():
    keys = [(v.name, v.config) for v in variants(H100)]
    quick = {(v.name, v.config) for v in quick_variants(H100)}
    assert len(set(keys)) == len(keys) and quick <= {*keys}
    for variant in variants(H100):
        names = set(variant.kernel.arg_names)
        assert set(variant.types) | set(variant.constexprs) <= names, variant.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"tensor_core": ""}, "has no tensor-core products"),
        ({"load_bits": 64}, "loads 64 bits at a time, not 128"),
        ({"shared_bytes": 300 << 10}, "of shared memory"),
    ],
)
def test_faults_are_found(change, message):
    variant, target = quick_variants(H100)[0], TARGETS["sm_90"]
    assert faults(variant, target, GOOD) == []
    [found] = faults(variant, target, MachineCode(**{**GOOD.__dict__, **change}))
    assert message in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("registers", 142),
        ("spills", 4),
        ("shared_bytes", 65537),
        ("occupancy", 0.1),
        ("tensor_core", ""),
        ("load_bits", 64),
    ],
)
def test_regressions_are_found(key, value):
    before = {
        "registers": 128,
        "spills": 0,
        "shared_bytes": 65536,
        "occupancy": 0.25,
        "tensor_core": "mma.sync",
        "load_bits": 128,
    }
    assert regressions(before | {"registers": 140}, before) == []
    [found] = regressions(before | {key: value}, before)
    assert found.startswith(key) or "tensor-core" in found


def test_what_is_read_of_the_code():
    ptx = "ld.global.v4.b32 {%r1}, [%rd];\ncp.async.cg.shared.global [%r], [%rd], 0x10;"
    assert _nvidia_load_bits(ptx) == 128
    assert _nvidia_load_bits("ld.global.L1::evict_last.v2.b32 {%r1}, [%rd];") == 64
    assert _nvidia_load_bits("ld.global.b16 %r1, [%rd];") == 16
    # 255 registers: 8160 a warp, 8192 with the unit of 256: two programs of four warps.
    assert _occupancy(255, 0, 4, TARGETS["sm_90"]) == 8 / 64
    assert _occupancy(32, 100 << 10, 4, TARGETS["sm_90"]) == 8 / 64
