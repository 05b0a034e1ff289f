"""Whole decode steps on a card, random weights of Llama-3-8B's shape.

`python -m benchmarks.gpu_decode [--quick] [--dry-run] [--json PATH] [--seconds N]`

A row is a tree of prompts and the median time of a step in which every leaf decodes one token:
tables grow, the plan follows, a CUDA graph runs all layers and the head, and the tokens with the
largest logits come back to the host. `host_ms` is what of that the host does before the graph
starts. `floor_ms`: weights and every page of the tree once at the copy bandwidth, or the arithmetic
at the rate of a large product, both measured first. `published_ms` is Bifurcated attention's own
figure for that prefix and N on another H100 and a 7B model, where there is one.

Before the timing two trees are decoded with and without a graph, shared and alone: the tokens of
float32 must be the same; `agreeing_tokens` says how long those of the timed dtype are.
"""

import os
import time

import numpy as np
import torch

from benchmarks.gpu_timing import copy_gb_s, product_tflops
from benchmarks.plan import PUBLISHED
from benchmarks.random_model import LLAMA_3_8B, TINY, RandomTensors
from benchmarks.report import Report, argument_parser
from benchmarks.tree_shapes import Tree
from parallel_decode import _C
from parallel_decode.engine.kv_cache import KVCache, bytes_per_token
from parallel_decode.engine.step_graphs import Capture, CudaCapture, Graph, StepGraphs
from parallel_decode.kernels import BLOCK_SIZE, BranchPlan, open_ops
from parallel_decode.model.config import ModelConfig
from parallel_decode.model.transformer import Transformer

GRID = tuple(
    Tree(f"{prefix // 1024}K prefix, N={n}", (1, n), (prefix, 128))
    for prefix in (8192, 16384, 32768)
    for n in (1, 8, 32, 64, 128, 256, 512)
)
SEVERAL = (
    Tree("8 prompts of 2K, 16 each", (8, 128), (2048, 128)),
    Tree("512, then 4 x 256, 16 x 128", (1, 4, 64), (512, 256, 128)),
)
QUICK = (GRID[0], GRID[2])
DRY = (Tree("tiny", (1, 3), (40, 5)), Tree("tiny, deep", (1, 2, 5), (33, 7, 3)))
WARM_STEPS, TIMED_STEPS = 4, 24
CHECKED_TOKENS = 16
DRY_TOKENS = 4


class Again:
    """A graph that is none: it runs the function once more, and copies into the first outputs."""

    def __init__(self, run: object) -> None:
        self.replay = run


def capture_again(run: object) -> Graph:
    run()  # type: ignore[operator]
    return Again(run)  # type: ignore[return-value]


class Steps:
    """A model and its cache, and the steps of one tree at a time."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        max_tokens: int,
        capture: Capture,
    ) -> None:
        ops = open_ops("triton", device=device)
        assert ops.plans is not None
        torch.manual_seed(0)
        tensors = RandomTensors(config, device, dtype)
        name = str(dtype).removeprefix("torch.")
        self.config, self.device = config, device
        self.model = Transformer(config, tensors, ops, name, 33024, device)
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        self.cache = KVCache(*shape, max_tokens // BLOCK_SIZE, ops, dtype, device)
        self.cache.storage.normal_(std=0.5)
        self.bytes_per_token = bytes_per_token(*shape, dtype)
        self.graphs = StepGraphs(self.model, self.cache, ops.plans, capture)
        self.frequencies = np.ascontiguousarray(self.model.inverse_frequencies.numpy(), np.float32)

    def decode(
        self, tree: Tree, num_steps: int, *, share: bool = True, graph: bool = True
    ) -> tuple[np.ndarray, list[tuple[float, float]]]:
        """Greedy tokens [num_steps, num_leaves] after random KV, and each step's (seconds, seconds
        of the host before the graph)."""
        tables = tree.tables()
        ids = np.arange(len(tables), dtype=np.int64) % self.config.vocab_size
        tokens, seconds = [], []
        ones = np.ones(len(tables), np.int32)
        for _ in range(num_steps):
            self.synchronize()
            start = time.perf_counter()
            positions = np.array([table.num_tokens for table in tables], np.int32)
            slots, copies = _C.append_tokens(tables, ones, positions)
            self.cache.copy_blocks(copies)
            plan = BranchPlan(tables, ones, positions, self.frequencies, share=share)
            if graph:
                planned = time.perf_counter()
                replayed = self.graphs.run(ids, positions, slots, plan)
                assert replayed is not None, "a plain step runs as a graph"
                _, logits = replayed
            else:
                planned = time.perf_counter()
                inputs = (torch.from_numpy(x).to(self.device) for x in (ids, positions, slots))
                logits = self.model.logits(self.model.forward(*inputs, plan, self.cache))
            ids = logits.argmax(-1).cpu().numpy()
            seconds.append((time.perf_counter() - start, planned - start))
            tokens.append(ids)
        return np.stack(tokens), seconds

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def check(steps: Steps, tree: Tree, exact: bool) -> int:
    """How many steps with a graph, shared, give the tokens of steps without and alone."""
    num_tokens = CHECKED_TOKENS if steps.device.type == "cuda" else DRY_TOKENS
    shared, _ = steps.decode(tree, num_tokens)
    alone, _ = steps.decode(tree, num_tokens, share=False, graph=False)
    same = (shared == alone).all(1)
    agreeing = int(same.argmin()) if not same.all() else num_tokens
    if exact and agreeing < num_tokens:
        raise SystemExit(f"{tree.name}: tokens differ at step {agreeing}, nothing was timed")
    return agreeing


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, on the CPU")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=180, help="no new tree after these")
    args = parser.parse_args()
    if args.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("--dry-run needs TRITON_INTERPRET=1 in the environment")
    device = torch.device("cpu" if args.dry_run else "cuda")
    dtype = torch.float16 if args.dry_run else getattr(torch, args.dtype)
    config = TINY if args.dry_run else LLAMA_3_8B
    bandwidth, peak = copy_gb_s(device), product_tflops(device, dtype)
    report = Report(
        "gpu_decode",
        {
            "card": "dry run" if args.dry_run else torch.cuda.get_device_name(),
            "dtype": str(dtype).removeprefix("torch."),
            "model": "tiny" if args.dry_run else "Llama-3-8B's shape, random weights",
            "copy_gb_s": round(bandwidth, 1),
            "product_tflops": round(peak, 1),
        },
    )
    start = time.perf_counter()
    trees = DRY if args.dry_run else QUICK if args.quick else (*GRID, *SEVERAL)
    capture: Capture = capture_again if args.dry_run else CudaCapture()
    exact = Steps(TINY, device, torch.float32, 4096, capture)
    for tree in DRY:
        check(exact, tree, exact=True)
    del exact
    room = max(tree.max_blocks for tree in trees) * BLOCK_SIZE + 512 * 64
    steps = Steps(config, device, dtype, room, capture)
    warm, timed = (1, 2) if args.dry_run else (WARM_STEPS, TIMED_STEPS)
    for tree in trees:
        if time.perf_counter() - start > args.seconds:
            report.conditions["stopped"] = f"after {args.seconds} seconds"
            break
        agreeing = check(steps, tree, exact=False) if tree in (*QUICK, *DRY) else None
        _, seconds = steps.decode(tree, warm + timed)
        total, host = np.median(np.array(seconds[warm:]), 0) * 1e3
        report.add(
            **row_of(steps, tree, total, bandwidth, peak),
            host_ms=float(host),
            agreeing_tokens=agreeing,
        )
        report.save(args.json)
    report.finish(args.json)


def row_of(
    steps: Steps, tree: Tree, ms: float, bandwidth: float, peak: float
) -> dict[str, str | float | int | None]:
    num_leaves = tree.nodes[-1]
    stored = sum(count * tokens for count, tokens in zip(tree.nodes, tree.tokens, strict=True))
    kv_bytes = stored * steps.bytes_per_token
    weights = steps.model.weight_bytes
    config = steps.config
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * num_leaves
    operations = weights * num_leaves + attention * sum(tree.tokens)
    memory_ms = (weights + kv_bytes) / bandwidth / 1e6
    published = None
    if len(tree.nodes) == 2 and tree.nodes[0] == 1:
        published = PUBLISHED.get(("32/8", tree.tokens[0]), {}).get(num_leaves)
    return {
        "shape": tree.name,
        "step_ms": ms,
        "tokens_per_s": 1e3 * num_leaves / ms,
        "floor_ms": max(memory_ms, operations / peak / 1e9),
        "gb_s": (weights + kv_bytes) / ms / 1e6,
        "tflops": operations / ms / 1e9,
        "published_ms": published,
    }


if __name__ == "__main__":
    main()
