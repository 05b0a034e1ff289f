"""How other engines cut the same trees into launches, as `gpu_model.Kernel`s.

Each is written after its public source, with the choices that it makes on an H100.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_model import Kernel, Read
from parallel_decode import _C
from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.kernels.launch import AttentionShape, Card

Tables = Sequence[_C.BlockTable]


def _blocks(table: _C.BlockTable) -> NDArray[np.int32]:
    return np.ascontiguousarray(table.entries()[:, 0])


def _partial_bytes(num_partials: int, shape: AttentionShape) -> float:
    """Partial results in fp32 of all heads, written and read."""
    return 2 * 4 * num_partials * shape.num_heads * (shape.head_dim + 1)


def _parts(blocks: NDArray[np.int32], count: int) -> list[NDArray[np.int32]]:
    return [part for part in np.array_split(blocks, count) if len(part)]


# ---- plain paged decode: FlashAttention's split-KV ----


def paged_decode(
    tables: Tables, rows: NDArray[np.int32], shape: AttentionShape, card: Card
) -> list[Kernel]:
    """Every sequence reads its own table, the heads of a group in one tile of 64 rows; the KV is
    split until 85 % of the best efficiency of waves is reached."""
    tile_m, step = 64, 128 // BLOCK_SIZE
    tiles = [-(-int(r) * shape.group // tile_m) for r in rows]
    longest = max(len(_blocks(table)) for table in tables)
    splits = _flash_splits(sum(tiles) * shape.num_kv_heads, 2 * card.num_sms, -(-longest // step))
    reads = [
        Read(part, tile_m)
        for table, count in zip(tables, tiles, strict=True)
        for _ in range(count)
        for part in _parts(_blocks(table), splits)
    ]
    kernels = [Kernel(reads)]
    if splits > 1:
        kernels.append(Kernel([], _partial_bytes(splits * int(rows.sum()), shape)))
    return kernels


def _flash_splits(programs: int, slots: int, steps: int) -> int:
    if programs >= 0.8 * slots:
        return 1
    best, efficiencies = 0.0, []
    for splits in range(1, min(128, slots, steps) + 1):
        # A count that gives no shorter split than the one before is not eligible.
        eligible = splits == 1 or -(-steps // splits) != -(-steps // (splits - 1))
        waves = programs * splits / slots
        efficiencies.append(waves / np.ceil(waves) if eligible else 0.0)
        best = max(best, efficiencies[-1])
    return next(i for i, e in enumerate(efficiencies, 1) if e >= 0.85 * best)


# ---- FlashInfer's multi-level cascade ----


def cascade(
    tables: Tables, rows: NDArray[np.int32], shape: AttentionShape, card: Card
) -> list[Kernel]:
    """A prefill kernel for every level of the forest and a merge behind all but the first. A
    level's tile is 16, 64 or 128 rows high by its mean of rows; its KV is split so far that all its
    programs fit the card at once, and then merged once more."""
    levels = _levels(tables, rows)
    kernels = []
    total_rows = int(rows.sum())
    for number, level in enumerate(levels):
        mean = np.mean([n for n, _ in level]) * shape.group
        tile_m = 128 if mean > 64 else 64 if mean > 16 else 16
        tiles = [-(-n * shape.group // tile_m) for n, _ in level]
        pages = [len(blocks) for _, blocks in level]
        chunk = _chunk_pages(tiles, pages, 2 * card.num_sms // shape.num_kv_heads)
        reads, split_rows = [], 0
        for (n, blocks), count in zip(level, tiles, strict=True):
            parts = _parts(blocks, -(-len(blocks) // chunk))
            split_rows += n * len(parts) if len(parts) > 1 else 0
            reads += [Read(part, tile_m) for part in parts for _ in range(count)]
        kernels.append(Kernel(reads))
        if split_rows:
            kernels.append(Kernel([], _partial_bytes(split_rows, shape)))
        if number:
            kernels.append(Kernel([], _partial_bytes(2 * total_rows, shape) / 2))
    return kernels


def _levels(tables: Tables, rows: NDArray[np.int32]) -> list[list[tuple[int, NDArray[np.int32]]]]:
    """Nodes of each depth: (rows, blocks)."""
    levels: list[list[tuple[int, NDArray[np.int32]]]] = []

    def visit(first: int, last: int, depth: int, level: int) -> None:
        begin = first
        while begin < last:
            mine = chains[begin]
            if len(mine) == depth:
                begin += 1
                continue
            end, common = begin + 1, len(mine)
            while end < last and shared[end] > depth:
                common = min(common, shared[end])
                end += 1
            if len(levels) == level:
                levels.append([])
            levels[level].append((int(rows[begin:end].sum()), mine[depth:common]))
            if end - begin > 1:
                visit(begin, end, common, level + 1)
            begin = end

    chains = [_blocks(table) for table in tables]
    shared = [0]
    for one, other in zip(chains, chains[1:]):
        size = min(len(one), len(other))
        same = one[:size] == other[:size]
        shared.append(int(size if same.all() else np.argmin(same)))
    visit(0, len(tables), 0, 0)
    return levels


def _chunk_pages(tiles: Sequence[int], pages: Sequence[int], max_programs: int) -> int:
    """The shortest chunk with which all programs fit, by bisection."""
    low, high = max(1, 128 // BLOCK_SIZE), max(pages)
    while low < high:
        middle = (low + high) // 2
        if sum(t * -(-p // middle) for t, p in zip(tiles, pages, strict=True)) > max_programs:
            low = middle + 1
        else:
            high = middle
    return low


# ---- DeFT's flattened tree ----


def flattened(
    tables: Tables, rows: NDArray[np.int32], shape: AttentionShape, card: Card
) -> list[Kernel]:
    """All pages of the forest in one list, cut every 128 tokens. A chunk meets every query that any
    of its nodes serves, 64 rows at a time, and masks those away that do not see a page."""
    tile_m, chunk_pages = 64, 128 // BLOCK_SIZE
    owners: dict[int, set[int]] = {}
    order: list[int] = []
    for i, table in enumerate(tables):
        for block in _blocks(table).tolist():
            if block not in owners:
                owners[block] = set()
                order.append(block)
            owners[block].add(i)
    reads, partials = [], 0
    for begin in range(0, len(order), chunk_pages):
        chunk = order[begin : begin + chunk_pages]
        queries = int(rows[sorted(set().union(*(owners[b] for b in chunk)))].sum())
        partials += queries
        times = -(-queries * shape.group // tile_m)
        reads.append(Read(np.array(chunk, np.int32), tile_m, times))
    return [Kernel(reads), Kernel([], _partial_bytes(partials, shape))]


PLANNERS = {"paged decode": paged_decode, "cascade": cascade, "flattened": flattened}
