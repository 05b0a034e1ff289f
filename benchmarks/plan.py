"""What a plan promises before it runs: bytes, launches, balance, and its own price on the host.

`python -m benchmarks.plan [--quick] [--json PATH] [--card NAME]`

A row is a tree of branches, a ratio of heads and a planner. `kv_bytes_floor`: every page of the
tree once. `kv_bytes_planned`: what comes from memory, where programs that run at a time share what
they read; `kv_bytes_requested`: what programs ask of L2. `balance`: the fullest multiprocessor over
the mean. `predicted_us`: one layer by the model of `benchmarks/gpu_model.py`, which is the same for
all planners; `times_...`: another planner's in times of ours. `host_us`: making the plan of a step
from its tables, `patch_us`: following a step in which the tables only grew; both as the engine does
it from Python, into the buffer that a card would be sent, and only for this engine. The other
planners are written after their sources (`benchmarks/planners.py`): the figures of all are counted
and computed, none is measured on a card.

The last rows are whole decode steps of the shapes of Bifurcated attention's table (one H100, 7B),
`floor_ms` by the card's bandwidth and peak, `published_ms` as they measured.
"""

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.progress import track

from benchmarks.gpu_model import Kernel, Read, dense_us, predict
from benchmarks.planners import PLANNERS
from benchmarks.report import Report, Value, argument_parser
from benchmarks.tree_shapes import FREQUENCIES, SHAPES, Tree, grow
from parallel_decode import _C
from parallel_decode.kernels import BranchPlan
from parallel_decode.kernels.device_plan import DevicePlan
from parallel_decode.kernels.launch import AttentionShape, Card, card_named

HEADS = ((32, 32), (32, 8), (16, 1))
HEAD_DIM, ITEM_BYTES = 128, 2
OURS, ALONE = "parallel_decode", "parallel_decode, nothing shared"
QUICK_SHAPES = 4


# ---- this engine ----


def kernels_of(device_plan: DevicePlan) -> list[Kernel]:
    work = device_plan.work
    items = work.items()
    pages = device_plan.tensors.pages[0].numpy()
    block_m = device_plan.launch.tiles.block_m
    reads = [
        Read(pages[begin:end], block_m[wide]) for _, _, begin, _, end, _, _, wide in items.tolist()
    ]
    kernels = [Kernel(reads)]
    if work.num_launches == 2:
        shape = device_plan.shape
        partial_bytes = 2 * 4 * work.num_partials * shape.num_heads * (shape.head_dim + 1)
        kernels.append(Kernel([], partial_bytes))
    return kernels


def our_plan(tree: Tree, shape: AttentionShape, card: Card, share: bool) -> DevicePlan:
    plan, _ = tree.plan(share)
    device_plan = DevicePlan(shape, card, torch.device("cpu"))
    device_plan.make(plan)
    return device_plan


def host_us(tree: Tree, shape: AttentionShape, card: Card, rounds: int) -> tuple[float, float]:
    """Medians of making a plan and of following growth."""
    _, tables = tree.plan()
    rows = np.full(len(tables), tree.draft or 1, np.int32)
    device_plan = DevicePlan(shape, card, torch.device("cpu"))
    device_plan.make(BranchPlan(tables, rows, positions_of(tables, rows), FREQUENCIES))
    made, followed = [], []
    for _ in range(rounds):
        for times, again in ((made, False), (followed, True)):
            if again and tree.draft:
                continue
            if again:
                grow(tables, 1)
            else:
                device_plan._tables = []  # not those of the step before
            positions = positions_of(tables, rows)
            start = time.perf_counter()
            device_plan.make(BranchPlan(tables, rows, positions, FREQUENCIES))
            times.append(1e6 * (time.perf_counter() - start))
            if again and not device_plan.was_kept:
                times.pop()
        for table in tables:
            if not tree.draft:
                table.truncate(table.num_tokens - 1)
    return statistics.median(made), statistics.median(followed) if followed else 0.0


def positions_of(tables: Sequence[_C.BlockTable], rows: np.ndarray) -> np.ndarray:
    ends = np.array([table.num_tokens for table in tables], np.int32)
    within = np.arange(rows[0], dtype=np.int32)
    return (np.repeat(ends - rows, rows) + np.tile(within, len(tables))).astype(np.int32)


# ---- rows ----


def add_rows(report: Report, kind: str, tree: Tree, heads: tuple[int, int], card: Card) -> None:
    shape = AttentionShape(*heads, HEAD_DIM, ITEM_BYTES)
    plan, tables = tree.plan()
    floor = sum(set_bytes(tables, shape))
    rows = plan.rows
    ours = our_plan(tree, shape, card, share=True)
    per_sm = ours.launch.num_programs // card.num_sms
    alone = our_plan(tree, shape, card, share=False)
    plans = {
        OURS: kernels_of(ours),
        ALONE: kernels_of(alone),
        **{name: planner(tables, rows, shape, card) for name, planner in PLANNERS.items()},
    }
    times = host_us(tree, shape, card, 5)
    predictions = {name: predict(kernels, shape, card, per_sm) for name, kernels in plans.items()}
    for name, predicted in predictions.items():
        row: dict[str, Value] = {
            "kind": kind,
            "shape": tree.name,
            "heads": f"{heads[0]}/{heads[1]}",
            "planner": name,
            "kv_bytes_planned": int(predicted.kv_bytes),
            "kv_bytes_requested": int(predicted.kv_bytes_requested),
            "kv_bytes_floor": int(floor),
            "launches": len(plans[name]),
            "balance": round(predicted.balance, 3),
            "predicted_us": round(predicted.us, 2),
        }
        if name == OURS:
            row |= {"host_us": round(times[0], 1), "patch_us": round(times[1], 1)}
            row["padding"] = round(padding(ours), 3)
            row["read_over_floor"] = round(predicted.kv_bytes / floor, 3)
            for other in PLANNERS:
                key = f"times_{other.replace(' ', '_')}"
                row[key] = round(predictions[other].us / predicted.us, 2)
        row["in_table"] = name == OURS and kind == "fasttree" and heads == (32, 8)
        report.add(**row)


def set_bytes(tables: Sequence[_C.BlockTable], shape: AttentionShape) -> list[int]:
    blocks = {int(b) for table in tables for b in table.entries()[:, 0]}
    return [shape.page_bytes * shape.num_kv_heads] * len(blocks)


def padding(device_plan: DevicePlan) -> float:
    """Rows of all tiles over rows that hold a query, each weighted with the pages it meets."""
    block_m, group = device_plan.launch.tiles.block_m, device_plan.shape.group
    items = device_plan.work.items()
    pages = items[:, 4] - items[:, 2]
    heights = np.array(block_m)[items[:, 7]]
    return float((heights * pages).sum() / (items[:, 1] * group * pages).sum())


# ---- the decode step of Bifurcated attention's table ----

# Steps in ms as published (Bifurcated attention with torch.compile, one H100, 7B).
PUBLISHED = {
    ("32/32", 8192): {1: 8.64, 8: 12.36, 32: 13.47, 64: 15.36, 128: 19.56, 256: 27.15, 512: 44.33},
    ("32/8", 8192): {1: 10.56, 8: 11.79, 32: 12.50, 64: 13.87, 128: 17.03, 256: 24.38, 512: 39.08},
    ("32/8", 16384): {1: 15.16, 8: 16.61, 32: 17.77, 64: 19.90, 128: 24.90, 256: 33.76},
    ("32/8", 32768): {1: 22.79, 8: 24.59, 32: 27.01, 64: 30.31, 128: 37.60, 256: 52.06},
}
LAYERS, HIDDEN, VOCAB = 32, 4096, 32000
INNER = {"32/32": 11008, "32/8": 14336}
SMALL_KERNELS = 6
"""Of a layer, beside products and attention: two norms, RoPE, KV store, SiLU, and a merge."""


def add_step_rows(report: Report, card: Card, suffix: int = 128) -> None:
    for (heads, prefix), published in PUBLISHED.items():
        num_heads, num_kv_heads = map(int, heads.split("/"))
        shape = AttentionShape(num_heads, num_kv_heads, HEAD_DIM, ITEM_BYTES)
        for n, published_ms in published.items():
            tree = Tree("", (1, n), (prefix, suffix))
            device_plan = our_plan(tree, shape, card, share=True)
            per_sm = device_plan.launch.num_programs // card.num_sms
            attention = predict(kernels_of(device_plan), shape, card, per_sm).us
            kv_floor = sum(set_bytes(tree.plan()[1], shape))
            operations = 4 * n * (prefix + suffix) * num_heads * HEAD_DIM
            attention_floor = dense_us(kv_floor, operations, card)
            products = product_us(heads, num_kv_heads, n, card)
            small = SMALL_KERNELS * card.launch_us
            report.add(
                kind="decode step",
                shape=f"{prefix // 1024}K prefix, N={n}",
                heads=heads,
                planner=OURS,
                floor_ms=round((LAYERS * attention_floor + products) / 1e3, 2),
                predicted_ms=round((LAYERS * (attention + small) + products) / 1e3, 2),
                published_ms=published_ms,
                in_table=False,
            )


def product_us(heads: str, num_kv_heads: int, n: int, card: Card) -> float:
    """All matrix products of a step of n tokens."""
    qkv = HIDDEN * (HIDDEN + 2 * num_kv_heads * HEAD_DIM)
    inner = INNER[heads]
    layer = (qkv, HIDDEN * HIDDEN, HIDDEN * 2 * inner, inner * HIDDEN)
    total = sum(dense_us(2 * size, 2 * size * n, card) for size in layer) * LAYERS
    return total + dense_us(2 * HIDDEN * VOCAB, 2 * HIDDEN * VOCAB * n, card)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--card", default="NVIDIA H100", help="whose constants are taken")
    args = parser.parse_args()
    # On a card one engine copies the plan; threads of the host would wait for each other here.
    torch.set_num_threads(1)
    card = card_named(args.card)
    report = Report(
        "plan",
        {
            "card": card.name,
            "head_dim": HEAD_DIM,
            "kv_bits": 8 * ITEM_BYTES,
            "dram_gb_s": card.dram_gb_s,
            "l2_gb_s": card.l2_gb_s,
            "tensor_tflops": card.tensor_tflops,
            "figures": "computed, not measured on a card",
        },
    )
    work = [
        (kind, tree, heads)
        for kind, trees in SHAPES.items()
        for tree in (trees[:: -(-len(trees) // QUICK_SHAPES)] if args.quick else trees)
        for heads in HEADS
    ]
    for kind, tree, heads in track(work, description="planning", transient=True):
        add_rows(report, kind, tree, heads, card)
    add_step_rows(report, card)
    report.finish(args.json)


if __name__ == "__main__":
    main()
