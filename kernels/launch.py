"""How a launch is cut: cards, tile shapes, and what a plan costs. Pure functions and constants.

The decisions themselves, which tree edges share a read and how long an item is, are taken in
csrc/work_plan.cpp once a step; they weigh the `WorkCosts` made here, all of them microseconds that
one program takes while the whole card is busy:

    item    = start + pages * page            page: the slower of its bytes and its operations
    partial = what one row's partial result costs to write and to merge

A node of the forest whose rows fill tiles of their own anyway, or that is short, is read once more
by its children instead of on its own: that saves `start` and `partial`. Sharing is the choice of
the plan, not of the user, and for two rows over a short prefix the choice is not to share.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from parallel_decode import _C
from parallel_decode.kernels.plan import BLOCK_SIZE


@dataclass(frozen=True)
class Card:
    """What launch choices know of a card. `benchmarks.autotune` measures them on the card at hand.

    num_sms: multiprocessors. dram_gb_s, l2_gb_s: read bandwidth. tensor_tflops: dense products of
    fp16 or bf16. shared_bytes, registers: of a multiprocessor. start_us: from a program's first
    instruction to its first page, and from its last page to its result. launch_us: a kernel of a
    CUDA graph. products_from_registers: whether tensor cores take both factors from there, and
    none from shared memory.
    """

    name: str
    num_sms: int
    dram_gb_s: float
    l2_gb_s: float
    tensor_tflops: float
    shared_bytes: int
    registers: int = 65536
    start_us: float = 1.5
    launch_us: float = 2.0
    products_from_registers: bool = False


# H100: copies and products as measured, elsewhere nine tenths of the data sheet.
H100 = Card("NVIDIA H100", 132, 3000, 5500, 798, 227 << 10)
CARDS = (
    H100,
    Card("NVIDIA H200", 132, 4300, 5500, 798, 227 << 10),
    Card("NVIDIA A100", 108, 1800, 4000, 280, 163 << 10, products_from_registers=True),
    Card("NVIDIA B200", 148, 7200, 10000, 2000, 227 << 10),
    Card("AMD Instinct MI300X", 304, 4700, 9000, 1170, 64 << 10, products_from_registers=True),
)


MEASURED = Path(__file__).parent / "cards"
"""What `benchmarks.autotune` has written: a file a card."""


def card_named(name: str) -> Card:
    """The card as it was measured, else by its data sheet, else an H100."""
    path = MEASURED / f"{card_slug(name)}.json"
    if path.exists():
        return Card(**json.loads(path.read_text())["card"])
    return next((card for card in CARDS if name.startswith(card.name)), H100)


def card_slug(name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3" """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# ---- tiles ----

NARROW, WIDE = 0, 1
# Part of the card's peak that tiles of 16 rows and of more reach: the first leave tensor cores
# half empty, and softmax runs beside the products of the others.
TENSOR_EFFICIENCY = (0.25, 0.6)


@dataclass(frozen=True)
class Tiles:
    """Shapes of the attention kernel's two bodies, narrow and wide: rows, and keys of one step."""

    block_m: tuple[int, int]
    block_n: tuple[int, int]
    num_warps: int
    num_stages: int

    def pages_per_read(self) -> tuple[int, int]:
        return self.block_n[NARROW] // BLOCK_SIZE, self.block_n[WIDE] // BLOCK_SIZE

    def programs_per_sm(self, head_dim: int, item_bytes: int, card: Card) -> int:
        """As many as shared memory, for queries and the stages of pages, and registers hold."""
        width = 1 << (head_dim - 1).bit_length()
        stages = 2 * self.num_stages * max(self.block_n) * width * item_bytes
        queries = self.block_m[WIDE] * width * 2
        by_shared = card.shared_bytes // (stages + queries)
        by_registers = card.registers // (self.num_warps * 32 * 255)
        return max(1, min(by_shared, by_registers))


# ---- costs ----


@dataclass(frozen=True)
class AttentionShape:
    """The attention of one model.

    item_bytes: of a number of the KV cache. sliding_window: of every layer; None where some layer
    has none.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    item_bytes: int
    sliding_window: int | None = None

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def page_bytes(self) -> int:
        """Keys and values of one KV head in one page."""
        return 2 * BLOCK_SIZE * self.head_dim * self.item_bytes


def choose_tiles(shape: AttentionShape, card: Card, widest: int) -> Tiles:
    """Tiles for reads that serve at most `widest` query rows.

    The narrow tile is as high as the smallest tensor-core product. The wide one has the 64 rows of
    one Hopper warpgroup's product, and those of two where they would be filled: a page then comes
    from L2 half as often. A step has 64 keys. All of this is less, or shared by more warps, where
    registers would not hold it: `benchmarks.aot` finds no spills.
    """
    group, is_long = shape.group, shape.head_dim > 128
    from_registers = card.products_from_registers
    # Numbers of 8 bits are widened in registers.
    is_widened = shape.item_bytes == 1 and (is_long or from_registers)
    block_n = 32 if is_long or from_registers or group & (group - 1) else 64
    if is_long and is_widened:
        block_n = 16
    narrow = 16 if group <= 16 else 1 << (group - 1).bit_length()
    wide = 128 if widest * group > 64 and not is_long and not is_widened else 64
    num_warps = 8 if wide == 128 or is_widened else 4
    return Tiles((narrow, max(wide, narrow)), (block_n, block_n), num_warps, 2)


@dataclass(frozen=True)
class Launch:
    """An attention on a card under some tiles."""

    shape: AttentionShape
    card: Card
    tiles: Tiles

    @property
    def num_programs(self) -> int:
        """That the card runs at a time."""
        shape = self.shape
        return self.card.num_sms * self.tiles.programs_per_sm(
            shape.head_dim, shape.item_bytes, self.card
        )

    def page_us(self, tile: int, num_beside: int = 1) -> float:
        """A page under a tile: the slowest of its way from memory, which `num_beside` tiles that
        read it at a time share, of its way from L2, and of its operations."""
        share, shape = self.num_programs, self.shape
        dram = shape.page_bytes / (self.card.dram_gb_s * 1e3 / share) / num_beside
        l2 = shape.page_bytes / (self.card.l2_gb_s * 1e3 / share)
        operations = 4 * self.tiles.block_m[tile] * BLOCK_SIZE * shape.head_dim
        peak = self.card.tensor_tflops * 1e6 * TENSOR_EFFICIENCY[tile]
        return max(dram, l2, operations / (peak / share))

    @property
    def partial_us(self) -> float:
        """A row's partial result of one KV head, in fp32, written and read once in L2."""
        num_bytes = 2 * 4 * self.shape.group * (self.shape.head_dim + 1)
        return num_bytes / (self.card.l2_gb_s * 1e3 / self.num_programs)

    def work_costs(self, joined_pages: int = 1 << 16) -> _C.WorkCosts:
        """joined_pages: how many pages children may read once more; 0: every node is read alone."""
        tiles, group = self.tiles, self.shape.group
        return _C.WorkCosts(
            start=self.card.start_us,
            launch=self.card.launch_us,
            page=(self.page_us(NARROW), self.page_us(WIDE)),
            page_beside=(self.page_us(NARROW, 2), self.page_us(WIDE, 2)),
            partial=self.partial_us,
            tile_rows=(tiles.block_m[NARROW] // group, tiles.block_m[WIDE] // group),
            pages_per_read=tiles.pages_per_read(),
            num_programs=self.num_programs,
            num_kv_heads=self.shape.num_kv_heads,
            joined_pages=joined_pages,
            sliding_window=self.shape.sliding_window or 0,
        )
