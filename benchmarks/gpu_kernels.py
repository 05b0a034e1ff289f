"""Branch attention on a card, beside what else computes the same there.

`python -m benchmarks.gpu_kernels [--quick] [--dry-run] [--json PATH] [--seconds N]`

Every contestant computes one decode step of a layer: N branches of one tree over shared prefixes.
Before anything is timed its output is compared with fp32 attention over each branch's own keys.
Each call of a timing reads the cache of another layer, so that keys come from memory and not from
L2; all run as CUDA graphs and take turns. `us`: of a layer. `gb_s`: every page of the tree once,
over the time; `percent_of_roofline`: the floor, the slower of that at the copy bandwidth and of the
arithmetic at the rate of a large product (both measured first), over the time. What is not
installed is left out; `--dry-run` runs tiny shapes on the CPU in Triton's interpreter and times
nothing worth reading.
"""

import os
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from benchmarks.gpu_peers import PEERS
from benchmarks.gpu_timing import Timer, copy_gb_s, product_tflops
from benchmarks.report import Report, argument_parser
from benchmarks.tree_shapes import FASTTREE, Tree
from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.kernels.branch_attention import branch_attention
from parallel_decode.kernels.device_plan import DevicePlan
from parallel_decode.kernels.kv_format import cache_views
from parallel_decode.kernels.launch import AttentionShape, card_named

LLAMA = (32, 8, 128)
GRID = tuple(
    (LLAMA, Tree(f"{prefix // 1024}K prefix, N={n}", (1, n), (prefix, 128)))
    for prefix in (8192, 16384)
    for n in (1, 2, 8, 32, 128, 512)
)
DEEP = tuple(
    (heads, tree)
    for heads in (LLAMA, (32, 32, 128), (16, 1, 128))
    for tree in (FASTTREE[4], FASTTREE[7], FASTTREE[8], FASTTREE[10])
)
SHORT = tuple(
    (LLAMA, Tree(f"{prefix} prefix, N={n}", (1, n), (prefix, 64)))
    for prefix in (64, 512)
    for n in (2, 8, 64)
)
DRAFTS = tuple(
    (LLAMA, Tree(f"8K prefix, N={n}, draft {draft}", (1, n), (8192, 128), draft))
    for n in (1, 32)
    for draft in (16, 64)
)
FULL = (*GRID, *SHORT, *DEEP, *DRAFTS)
QUICK = (GRID[3], SHORT[1], DEEP[1])
TINY = tuple(
    ((4, 2, 64), tree)
    for tree in (
        Tree("tiny", (1, 3), (40, 5)),
        Tree("tiny, deep", (1, 2, 4), (20, 17, 3)),
        Tree("tiny, draft", (1, 2), (20, 3), 5),
    )
)
LAYER_BYTES = 256 << 20
"""All layers' pages of a timing together are at least so many bytes: several times an L2."""


class Problem:
    """A tree over caches of several layers."""

    def __init__(
        self,
        heads: tuple[int, int, int],
        tree: Tree,
        dtype: torch.dtype,
        device: torch.device,
        card_name: str,
        layer_bytes: int,
    ) -> None:
        num_heads, num_kv_heads, self.head_dim = heads
        self.device, self.dtype, self.tree = device, dtype, tree
        self.shape = AttentionShape(num_heads, num_kv_heads, self.head_dim, dtype.itemsize)
        self.plan, self.tables = tree.plan()
        self.alone, _ = tree.plan(share=False)
        num_blocks = tree.max_blocks
        items = num_kv_heads * self.head_dim * BLOCK_SIZE
        self.pages = len({int(b) for table in self.tables for b in table.entries()[:, 0]})
        self.kv_bytes = self.pages * self.shape.page_bytes * num_kv_heads
        self.num_layers = max(2, min(16, -(-layer_bytes // self.kv_bytes)))
        self.storage = [
            (torch.randn(2, num_blocks, items, device=device) / 2).to(dtype)
            for _ in range(self.num_layers)
        ]
        self.layers = [
            cache_views(keys, values, num_kv_heads, self.head_dim, head_dim_innermost=True)
            for keys, values in self.storage
        ]
        self.q = torch.randn(
            self.plan.num_rows, num_heads, self.head_dim, device=device, dtype=dtype
        )
        self.scale = self.head_dim**-0.5
        self.card = card_named(card_name)

    @property
    def operations(self) -> float:
        """Of a layer: two products of every row with each of its keys."""
        rows = self.plan.rows
        keys = sum(int(r) * t.num_tokens for r, t in zip(rows, self.tables, strict=True))
        return 4.0 * keys * self.shape.num_heads * self.head_dim

    def expected(self, row: int) -> torch.Tensor:
        """fp32 attention of a row over its own keys of the first layer: [num_heads, head_dim]."""
        rows = self.plan.rows.tolist()
        sequence, first = 0, 0
        while first + rows[sequence] <= row:
            first += rows[sequence]
            sequence += 1
        k_cache, v_cache = self.layers[0]
        keys, values = self.own_keys(self.tables[sequence], k_cache, v_cache)
        seen = torch.ones(len(keys), dtype=torch.bool)
        if self.plan.draft_masks is not None:
            mask, draft = int(self.plan.draft_masks[row]), rows[sequence]
            seen[-draft:] = torch.tensor([bool(mask >> j & 1) for j in range(draft)])
        keys, values = keys[seen].float(), values[seen].float()
        group = self.shape.group
        q = self.q[row].float().view(self.shape.num_kv_heads, group, self.head_dim)
        out = F.scaled_dot_product_attention(
            q, keys.transpose(0, 1), values.transpose(0, 1), scale=self.scale
        )
        return out.reshape(self.shape.num_heads, self.head_dim)

    def own_keys(
        self, table: object, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[num_tokens, num_kv_heads, head_dim] each."""
        entries = torch.from_numpy(table.entries()).to(self.device)  # type: ignore[attr-defined]
        blocks = entries[:, 0].long()
        tokens = table.num_tokens  # type: ignore[attr-defined]
        keys = k_cache[blocks].permute(0, 3, 1, 2).flatten(0, 1)[:tokens]
        values = v_cache[blocks].transpose(1, 2).flatten(0, 1)[:tokens]
        return keys, values

    def ours(self, share: bool) -> tuple[Callable[[int], torch.Tensor], DevicePlan]:
        device_plan = DevicePlan(self.shape, self.card, self.device)
        device_plan.make(self.plan if share else self.alone)

        def layer(index: int) -> torch.Tensor:
            return branch_attention(self.q, *self.layers[index], device_plan, self.scale)

        return layer, device_plan


def check(problem: Problem, layer: Callable[[int], torch.Tensor]) -> float:
    """Largest error of some rows; SystemExit where it is no rounding."""
    out = layer(0).float()
    rows = sorted({0, problem.plan.num_rows // 2, problem.plan.num_rows - 1})
    worst = 0.0
    for row in rows:
        expected = problem.expected(row)
        error = float((out[row] - expected).abs().max())
        worst = max(worst, error)
        limit = 4 * torch.finfo(problem.dtype).eps * float(expected.abs().max()) + 1e-3
        if not error <= limit:
            raise SystemExit(f"{problem.tree.name}: row {row} is off by {error}, nothing was timed")
    return worst


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=240, help="no new shape after these")
    args = parser.parse_args()
    if args.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("--dry-run needs TRITON_INTERPRET=1 in the environment")
    device = torch.device("cpu" if args.dry_run else "cuda")
    # The interpreter has no bfloat16.
    dtype = torch.float16 if args.dry_run else getattr(torch, args.dtype)
    card = "dry run" if args.dry_run else torch.cuda.get_device_name()
    bandwidth, peak = copy_gb_s(device), product_tflops(device, dtype)
    report = Report(
        "gpu_kernels",
        {
            "card": card,
            "dtype": str(dtype).removeprefix("torch."),
            "copy_gb_s": round(bandwidth, 1),
            "product_tflops": round(peak, 1),
            "left_out": ", ".join(n for n, p in PEERS.items() if not find_spec(p.package)) or None,
        },
    )
    timer = Timer(device, 1 if args.dry_run else 7)
    start = time.perf_counter()
    for heads, tree in TINY if args.dry_run else QUICK if args.quick else FULL:
        if time.perf_counter() - start > args.seconds:
            report.conditions["stopped"] = f"after {args.seconds} seconds"
            break
        problem = Problem(heads, tree, dtype, device, card, 0 if args.dry_run else LAYER_BYTES)
        add_rows(report, problem, timer, bandwidth, peak)
        report.save(args.json)
    report.finish(args.json)


def add_rows(report: Report, problem: Problem, timer: Timer, bandwidth: float, peak: float) -> None:
    ours, device_plan = problem.ours(share=True)
    alone, alone_plan = problem.ours(share=False)
    contestants = {"parallel_decode": ours, "parallel_decode, nothing shared": alone}
    for name, peer in PEERS.items():
        if find_spec(peer.package):
            layer = peer.prepare(problem)
            if layer is not None:
                contestants[name] = layer
    errors = {name: check(problem, layer) for name, layer in contestants.items()}

    def over_layers(layer: Callable[[int], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            for index in range(problem.num_layers):
                layer(index)

        return run

    times = timer.interleaved(list(map(over_layers, contestants.values())), problem.num_layers)
    floor_us = max(problem.kv_bytes / bandwidth / 1e3, problem.operations / peak / 1e6)
    plans = {"parallel_decode": device_plan, "parallel_decode, nothing shared": alone_plan}
    shape = problem.shape
    for (name, error), us in zip(errors.items(), times, strict=True):
        plan = plans.get(name)
        report.add(
            shape=problem.tree.name,
            heads=f"{shape.num_heads}/{shape.num_kv_heads}",
            engine=name,
            us=us,
            gb_s=problem.kv_bytes / us / 1e3,
            tflops=problem.operations / us / 1e6,
            percent_of_roofline=100 * floor_us / us,
            ratio_to_parallel_decode=us / times[0],
            kv_bytes_read=plan.kv_bytes_read if plan else None,
            kv_bytes_floor=problem.kv_bytes,
            launches=plan.num_launches if plan else None,
            max_error=error,
        )


if __name__ == "__main__":
    main()
