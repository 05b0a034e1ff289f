"""Every Triton kernel compiled ahead of time, for cards that need not be here.

`python -m benchmarks.aot [--quick] [--json PATH] [--targets sm_80,sm_90,sm_100,gfx942]`

A row is a kernel in one configuration for one target: `registers` of a thread, `spills` in bytes (0
is what we want), `shared_bytes` of a program, `occupancy` as the part of a multiprocessor's warps
that these leave room for, `tensor_core`: the matrix instructions found in the code, and
`load_bits`: its widest load from global memory. The run fails where a kernel does not compile,
spills, or lacks what its configuration asks for; with `--baseline` also where it needs more
registers or memory, or holds fewer warps, than the file of an earlier run says.
"""

import argparse
import json
from pathlib import Path

import triton
from rich.progress import track
from triton.compiler import ASTSource

from benchmarks.kernel_variants import Variant, quick_variants, variants
from benchmarks.machine_code import TARGETS, MachineCode, Target, read
from benchmarks.report import Report, Value, argument_parser

# A change elsewhere in a kernel may move a few registers about.
REGISTER_SLACK = 1.1


def compile_for(variant: Variant, target: Target) -> MachineCode:
    """Raises what the compiler raises."""
    names = variant.kernel.arg_names
    signature = {n: variant.types.get(n, "constexpr") for n in names}
    constexprs = {n: variant.constexprs.get(n) for n in names if signature[n] == "constexpr"}
    aligned = [["tt.divisibility", 16]]
    attrs = {(i,): aligned for i, n in enumerate(names) if variant.is_aligned(n)}
    source = ASTSource(variant.kernel, signature, constexprs, attrs)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=target.gpu, options=options)
    return read(compiled, target, variant.num_warps)


def faults(variant: Variant, target: Target, code: MachineCode) -> list[str]:
    found = []
    if code.spill_bytes:
        found.append(f"spills {code.spill_bytes} bytes")
    if variant.tensor_core and not code.tensor_core:
        found.append("has no tensor-core products")
    if code.load_bits < variant.load_bits:
        found.append(f"loads {code.load_bits} bits at a time, not {variant.load_bits}")
    if code.shared_bytes + target.shared_reserved > target.shared_bytes:
        found.append(f"needs {code.shared_bytes} bytes of shared memory")
    return found


def regressions(row: dict[str, Value], before: dict[str, Value]) -> list[str]:
    """What is worse than in a row of an earlier run."""
    found = []
    limits = (("registers", REGISTER_SLACK), ("spills", 1.0), ("shared_bytes", 1.0))
    for key, slack in limits:
        if row[key] > before[key] * slack:  # type: ignore[operator]
            found.append(f"{key} {row[key]}, was {before[key]}")
    if row["occupancy"] < before["occupancy"]:  # type: ignore[operator]
        found.append(f"occupancy {row['occupancy']}, was {before['occupancy']}")
    if bool(row["tensor_core"]) < bool(before["tensor_core"]):
        found.append(f"no tensor-core products, was {before['tensor_core']}")
    if row["load_bits"] < before["load_bits"]:  # type: ignore[operator]
        found.append(f"load_bits {row['load_bits']}, was {before['load_bits']}")
    return found


def parse_args() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--kernels", help="only those whose name contains this text")
    parser.add_argument(
        "--baseline", type=Path, help="report that nothing may be worse than, of the same Triton"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    targets = [TARGETS[name] for name in args.targets.split(",")]
    if args.quick:
        targets = [t for t in targets if t.name == "sm_90"] or targets[:1]
    before: dict[tuple[str, str, str], dict[str, Value]] = {}
    if args.baseline:
        earlier_run = json.loads(args.baseline.read_text())
        made_with = earlier_run["conditions"]["triton"]
        if made_with == triton.__version__:
            for row in earlier_run["rows"]:
                before[row["kernel"], row["config"], row["target"]] = row
        else:
            print(f"not compared: {args.baseline} is of Triton {made_with}, another compiler")
    work = [
        (target, variant)
        for target in targets
        for variant in (quick_variants if args.quick else variants)(target.card)
        if (args.kernels or "") in variant.name
    ]
    report = Report("aot", {"triton": triton.__version__})
    problems = []
    for target, variant in track(work, description="compiling", transient=True):
        row: dict[str, Value] = {
            "kernel": variant.name,
            "config": variant.config,
            "target": target.name,
            "in_table": variant in quick_variants(target.card),
        }
        try:
            code = compile_for(variant, target)
        except Exception as failure:  # a compiler's errors have no common class
            problems.append(f"{row}: {type(failure).__name__}: {failure}")
            report.add(**row, compiled=False)
            continue
        row |= {
            "compiled": True,
            "registers": code.registers,
            "spills": code.spill_bytes,
            "shared_bytes": code.shared_bytes,
            "occupancy": code.occupancy,
            "tensor_core": code.tensor_core,
            "load_bits": code.load_bits,
        }
        report.add(**row)
        found = faults(variant, target, code)
        earlier = before.get((variant.name, variant.config, target.name))
        if earlier is not None:
            found += regressions(row, earlier)
        problems += [f"{variant.name} {variant.config} for {target.name}: {f}" for f in found]
    report.finish(args.json)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
