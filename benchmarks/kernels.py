"""Every CPU operation against its reference and against the limits of the machine.

`python -m benchmarks.kernels [--quick] [--json PATH]`

Shapes are SmolLM2's. Before an operation is timed its result is compared with `ReferenceOps`. A row
has the median time of a call, arithmetic and bytes a second (each input and each output counted
once), and `percent_of_peak`: of the limit that this operation would meet first, `bound`. Limits are
measured in the same run: fp32 and int8 arithmetic from the first-level cache, and reading from
memory. Operands that a cache holds can pass the limit of memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Report, argument_parser
from benchmarks.timing import time_interleaved
from parallel_decode import _C
from parallel_decode.kernels import KV_DTYPES, BranchPlan, CpuOps, GroupQuantized, ReferenceOps
from parallel_decode.kernels.kv_format import block_items, cache_shapes

HIDDEN, INNER, VOCAB = 576, 1536, 49152
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
WEIGHTS = {"gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER), "lm_head": (VOCAB, HIDDEN)}
ROWS = (1, 8, 32, 512)
QUICK_ROWS = (1, 32)
# Branches, shared tokens, own tokens of each.
FORESTS = ((1, 1024, 64), (32, 1024, 64), (64, 4096, 64))
QUICK_FORESTS = FORESTS[:2]
REFERENCE = ReferenceOps()


@dataclass(frozen=True)
class Case:
    """One operation on one shape. `operations`: arithmetic of a call, `int8` if it is on bytes."""

    op: str
    shape: str
    storage: str
    ours: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    num_bytes: float
    operations: float
    int8: bool = False
    tolerance: float = 1e-4

    @property
    def in_table(self) -> bool:
        """README shows one product at one and at 32 rows, attention, and the rest at 32 rows."""
        if self.op == "linear":
            return self.shape in ("gate_up, 1 rows", "gate_up, 32 rows")
        return self.op == "branch_attention" or self.shape.startswith("32 rows")


def stored(weight: Tensor, storage: str) -> Tensor | GroupQuantized:
    if storage == "int8":
        return GroupQuantized.from_float(weight, 8)
    if storage in ("int4", "int4 in bytes"):
        four = GroupQuantized.from_float(weight, 4)
        return GroupQuantized.cat([four], 4 if storage == "int4" else 8)
    return weight.to(getattr(torch, storage))


def linear_cases(ops: CpuOps, all_rows: tuple[int, ...]) -> Iterator[Case]:
    for storage in ("float32", "bfloat16", "float16", "int8", "int4 in bytes", "int4"):
        for name, (out_features, in_features) in WEIGHTS.items():
            weight = stored(torch.randn(out_features, in_features), storage)
            layer, reference = ops.pack_linear(weight, None), REFERENCE.pack_linear(weight, None)
            for rows in all_rows:
                if name == "lm_head" and rows > 32:  # only for rows that need logits
                    continue
                x = torch.randn(rows, in_features)
                yield Case(
                    "linear",
                    f"{name}, {rows} rows",
                    storage,
                    lambda x=x, layer=layer: ops.linear(x, layer),  # type: ignore[misc]
                    lambda x=x, layer=reference: REFERENCE.linear(x, layer),  # type: ignore[misc]
                    layer.weight.num_bytes + 4 * rows * (in_features + out_features),
                    2.0 * rows * in_features * out_features,
                    int8=storage.startswith("int"),
                )


def attention_cases(ops: CpuOps, forests: tuple[tuple[int, int, int], ...]) -> Iterator[Case]:
    for storage, dtype in KV_DTYPES.items():
        for branches, prefix, suffix in forests:
            num_blocks = -(-prefix // 16) + branches * (-(-suffix // 16) + 1)
            shapes = cache_shapes(dtype, num_blocks, KV_HEADS, HEAD_DIM)
            k_cache, v_cache = (torch.zeros(shape, dtype=dtype) for shape in shapes)
            slots = torch.arange(num_blocks * 16)
            k, v = torch.randn(2, len(slots), KV_HEADS, HEAD_DIM)
            ops.kv_store(k, v, k_cache, v_cache, slots)
            pool = _C.BlockPool(num_blocks)
            root = _C.BlockTable(pool)
            _C.append_tokens([root], [prefix], [0])
            tables = [root.fork() for _ in range(branches)]
            for table in tables:
                _C.append_tokens([table], [suffix], [prefix])
            positions = np.full(branches, prefix + suffix - 1, np.int32)
            frequencies = np.ones(HEAD_DIM // 2, np.float32)
            plan = BranchPlan(tables, np.ones(branches, np.int32), positions, frequencies)
            q = torch.randn(branches, HEADS, HEAD_DIM)
            args = (q, k_cache, v_cache, plan, HEAD_DIM**-0.5)
            kv_bytes = 2 * KV_HEADS * block_items(dtype, HEAD_DIM) * dtype.itemsize / 16
            yield Case(
                "branch_attention",
                f"{branches} x ({prefix} shared + {suffix})",
                storage,
                lambda args=args: ops.branch_attention(*args),  # type: ignore[misc]
                lambda args=args: REFERENCE.branch_attention(*args),  # type: ignore[misc]
                plan.tokens_stored * kv_bytes + 2 * q.numel() * 4,
                4.0 * branches * HEADS * HEAD_DIM * (prefix + suffix),
                tolerance=1e-3,
            )


def pointwise_cases(ops: CpuOps, rows: int) -> Iterator[Case]:
    x, weight = torch.randn(rows, HIDDEN), torch.rand(HIDDEN)
    gate_up = torch.randn(rows, 2 * INNER)
    qkv = torch.randn(rows, HEADS + 2 * KV_HEADS, HEAD_DIM)
    q, k, _ = qkv.split((HEADS, KV_HEADS, KV_HEADS), 1)
    angles = torch.rand(2048, HEAD_DIM // 2)
    positions = torch.arange(rows, dtype=torch.int32)
    tables = (angles.cos(), angles.sin(), positions)
    logits = torch.randn(rows, VOCAB) * 3
    shape = f"{rows} rows"
    yield Case(
        "rms_norm",
        shape,
        "float32",
        lambda: ops.rms_norm(x, weight, 1e-5),
        lambda: REFERENCE.rms_norm(x, weight, 1e-5),
        8 * x.numel(),
        4 * x.numel(),
    )
    yield Case(
        "silu_mul",
        shape,
        "float32",
        lambda: ops.silu_mul(gate_up),
        lambda: REFERENCE.silu_mul(gate_up),
        6 * gate_up.numel(),
        10 * gate_up.numel(),
    )
    yield Case(
        "rope",
        shape,
        "float32",
        lambda: ops.rope(q.clone(), k.clone(), *tables)[0],
        lambda: REFERENCE.rope(q, k, *tables)[0],
        8 * (q.numel() + k.numel()),
        3 * (q.numel() + k.numel()),
    )
    yield Case(
        "logit_stats",
        shape,
        "float32",
        lambda: torch.from_numpy(ops.logit_stats(logits)[0]),
        lambda: torch.from_numpy(REFERENCE.logit_stats(logits)[0]),
        4 * logits.numel(),
        20 * logits.numel(),
    )
    for name, top_k, top_p in (("", 0, 1.0), (", top-k 50", 50, 1.0), (", top-p 0.9", 0, 0.9)):
        arrays = (
            np.ones(rows, np.float32),
            np.full(rows, top_k, np.int32),
            np.full(rows, top_p, np.float32),
            np.zeros(rows, np.float32),
            np.linspace(0.01, 0.99, rows),
        )
        yield Case(
            "sample",
            shape + name,
            "float32",
            lambda arrays=arrays: torch.from_numpy(ops.sample(logits, *arrays)),  # type: ignore[misc]
            lambda arrays=arrays: torch.from_numpy(REFERENCE.sample(logits, *arrays)),  # type: ignore[misc]
            4 * logits.numel(),
            20 * logits.numel(),
            tolerance=0.0,
        )


def check(case: Case) -> None:
    """Stops the run where an operation and its reference differ."""
    ours, expected = case.ours().double(), case.reference().double()
    error = float((ours - expected).abs().max() / expected.abs().max())
    if not error <= case.tolerance:
        raise SystemExit(f"{case}: relative error {error}, nothing was timed")


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    _C.set_num_threads(args.threads)
    ops = CpuOps()
    native = ops.native
    limits = {
        "fp32_peak_gflop_per_s": native.float_roofline() / 1e9,
        "int8_peak_gop_per_s": native.int8_roofline() / 1e9,
        "read_gb_per_s": native.read_bandwidth(_C.Arena(), (256 if args.quick else 1024) << 20)
        / 1e9,
    }
    report = Report(
        "kernels",
        {"quick": args.quick, "threads": args.threads, "isa": ops.isa}
        | {name: round(value, 1) for name, value in limits.items()},
    )
    torch.manual_seed(0)
    cases = [
        *linear_cases(ops, QUICK_ROWS if args.quick else ROWS),
        *attention_cases(ops, QUICK_FORESTS if args.quick else FORESTS),
        *(case for rows in QUICK_ROWS for case in pointwise_cases(ops, rows)),
    ]
    for case in cases:
        check(case)
        timing = time_interleaved({"ours": case.ours}, num_calls=200, max_seconds=0.3)["ours"]
        reference = time_interleaved(
            {"reference": case.reference}, num_warmup=0, num_calls=3, min_calls=1, max_seconds=0.3
        )["reference"]
        seconds = timing.p50_us / 1e6
        peak = limits["int8_peak_gop_per_s" if case.int8 else "fp32_peak_gflop_per_s"]
        arithmetic, memory = case.operations / seconds / 1e9, case.num_bytes / seconds / 1e9
        shares = {"arithmetic": arithmetic / peak, "memory": memory / limits["read_gb_per_s"]}
        bound = max(shares, key=lambda name: shares[name])
        report.add(
            op=case.op,
            shape=case.shape,
            storage=case.storage,
            us=timing.p50_us,
            gop_per_s=arithmetic,
            gb_per_s=memory,
            bound=bound,
            percent_of_peak=100 * shares[bound],
            reference_us=reference.p50_us,
            speedup_over_reference=reference.p50_us / timing.p50_us,
            in_table=case.in_table,
        )
    report.finish(args.json)


if __name__ == "__main__":
    main()
