"""The constants of a card that plans are made by, measured with the attention kernel itself.

`python -m benchmarks.autotune [--json PATH]`

Writes kernels/cards/<card>.json, or PATH. Launches of items of equal length give a program's start
and the price of a page: with p pages in each of w waves the launch takes launch + w (start + p
page). Items over pages of their own price memory, items over the same few pages price L2; copies
and a large product give the card's own limits.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_timing import Timer, copy_gb_s, product_tflops
from benchmarks.report import Report, argument_parser
from parallel_decode import _C
from parallel_decode.kernels import BLOCK_SIZE, BranchPlan
from parallel_decode.kernels.branch_attention import branch_attention
from parallel_decode.kernels.device_plan import DevicePlan
from parallel_decode.kernels.kv_format import cache_views
from parallel_decode.kernels.launch import MEASURED, AttentionShape, Card, card_named, card_slug

SHAPE = AttentionShape(32, 8, 128, 2)
SHORT, LONG = 8, 72  # pages of an item
WAVES = 4
CALLS = 8


def launch_us(timer: Timer, device: torch.device) -> float:
    """Of a kernel of a graph that does next to nothing."""
    one = torch.zeros(1, device=device)

    def run() -> None:
        for _ in range(100):
            one.add_(1)

    return timer.interleaved([run], 100)[0]


def item_us(timer: Timer, card: Card, pages: int, distinct: bool, device: torch.device) -> float:
    """A launch of WAVES waves of items of `pages` pages."""
    plan = DevicePlan(SHAPE, card, device, joined_pages=0)
    probe = branch_plan([pages], distinct=True)
    plan.make(probe)
    items = WAVES * plan.launch.num_programs // SHAPE.num_kv_heads
    tables = branch_plan([pages] * items, distinct)
    plan.make(tables)
    blocks = items * pages if distinct else pages
    numbers = SHAPE.num_kv_heads * SHAPE.head_dim * BLOCK_SIZE
    storage = torch.zeros(2, blocks + 1, numbers, dtype=torch.bfloat16, device=device)
    caches = cache_views(*storage, SHAPE.num_kv_heads, SHAPE.head_dim, head_dim_innermost=True)
    q = torch.zeros(items, SHAPE.num_heads, SHAPE.head_dim, dtype=torch.bfloat16, device=device)

    def run() -> None:
        for _ in range(CALLS):
            branch_attention(q, *caches, plan, 0.1)

    return timer.interleaved([run], CALLS)[0]


def branch_plan(pages: list[int], distinct: bool) -> BranchPlan:
    """One row over each of the given tables; `distinct`: over pages of its own."""
    pool = _C.BlockPool(sum(pages) + 1)
    tables = []
    for count in pages:
        if distinct or not tables:
            table = _C.BlockTable(pool)
            _C.append_tokens([table], [count * BLOCK_SIZE], [0])
        else:
            table = tables[0].fork()
        tables.append(table)
    positions = np.array([table.num_tokens - 1 for table in tables], np.int32)
    ones = np.ones(len(tables), np.int32)
    return BranchPlan(tables, ones, positions, np.ones(64, np.float32), share=False)


def measure(card: Card, device: torch.device) -> Card:
    """`card` with what was measured in place of its constants."""
    timer = Timer(device, 7)
    launch = launch_us(timer, device)
    short, long = (item_us(timer, card, p, True, device) for p in (SHORT, LONG))
    page = (long - short) / (LONG - SHORT) / WAVES
    cached_short, cached_long = (item_us(timer, card, p, False, device) for p in (SHORT, LONG))
    cached_page = (cached_long - cached_short) / (LONG - SHORT) / WAVES
    start = max(0.1, (short - launch) / WAVES - SHORT * page)
    properties = torch.cuda.get_device_properties(device)
    programs = DevicePlan(SHAPE, card, device)
    programs.make(branch_plan([1], distinct=True))
    wave_bytes = SHAPE.page_bytes * programs.launch.num_programs
    return replace(
        card,
        name=properties.name,
        num_sms=properties.multi_processor_count,
        dram_gb_s=max(copy_gb_s(device), wave_bytes / page / 1e3),
        l2_gb_s=wave_bytes / cached_page / 1e3,
        tensor_tflops=product_tflops(device, torch.bfloat16),
        shared_bytes=properties.shared_memory_per_multiprocessor - 1024,
        start_us=start,
        launch_us=launch,
    )


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.autotune measures a card, and torch finds none")
    device = torch.device("cuda")
    name = torch.cuda.get_device_name()
    before = card_named(name)
    card = measure(before, device)
    report = Report("autotune", {"card": name})
    for key, value in asdict(card).items():
        report.add(constant=key, value=value, before=asdict(before)[key])
    report.finish()
    path: Path = args.json or MEASURED / f"{card_slug(name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**report.as_dict(), "card": asdict(card)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
