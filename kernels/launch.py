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

from dataclasses import dataclass

from parallel_decode import _C
from parallel_decode.kernels.plan import BLOCK_SIZE


@dataclass(frozen=True)
class Card:
    """What launch choices know of a card. `benchmarks.autotune` measures them on the card at hand.

    num_sms: multiprocessors. dram_gb_s, l2_gb_s: read bandwidth. tensor_tflops: dense products of
    fp16 or bf16. shared_bytes, registers: of a multiprocessor. start_us: from a program's first
    instruction to its first page, and from its last page to its result. launch_us: a kernel of a
    CUDA graph.
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


# H100: copies and products as measured, elsewhere nine tenths of the data sheet.
H100 = Card("NVIDIA H100", 132, 3000, 5500, 798, 227 << 10)
CARDS = (
    H100,
    Card("NVIDIA H200", 132, 4300, 5500, 798, 227 << 10),
    Card("NVIDIA A100", 108, 1800, 4000, 280, 163 << 10),
    Card("NVIDIA B200", 148, 7200, 10000, 2000, 227 << 10),
    Card("AMD Instinct MI300X", 304, 4700, 9000, 1170, 64 << 10),
)


def card_named(name: str) -> Card:
    """The card whose name `name` begins with, else an H100."""
    return next((card for card in CARDS if name.startswith(card.name)), H100)


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
        """As many as shared memory and registers hold: queries, and the stages of keys and values.
        """
        width = 1 << (head_dim - 1).bit_length()
        stages = 2 * self.num_stages * max(self.block_n) * width * item_bytes
        queries = self.block_m[WIDE] * width * 2
        by_shared = card.shared_bytes // (stages + queries)
        by_registers = card.registers // (self.num_warps * 32 * 255)
        return max(1, min(by_shared, by_registers))


def choose_tiles(head_dim: int, group: int, max_rows: int) -> Tiles:
    """Tiles for at most `max_rows` query rows of one read.

    The narrow tile is as high as the smallest tensor-core product. The wide one holds 64 rows, the
    height of a Hopper warpgroup's product.
    """
    block_n = 64 if head_dim <= 128 else 32
    narrow = 16 if group <= 16 else 1 << (group - 1).bit_length()
    return Tiles((narrow, max(64, narrow)), (block_n, block_n), num_warps=4, num_stages=2)


# ---- costs ----


@dataclass(frozen=True)
class Launch:
    """The attention of one model on one card."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    item_bytes: int
    """Bytes of a number of the KV cache."""
    card: Card
    tiles: Tiles
    sliding_window: int | None = None
    """Of every layer; None where some layer has none."""

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def page_bytes(self) -> int:
        """Keys and values of one KV head in one page."""
        return 2 * BLOCK_SIZE * self.head_dim * self.item_bytes

    @property
    def num_programs(self) -> int:
        per_sm = self.tiles.programs_per_sm(self.head_dim, self.item_bytes, self.card)
        return self.card.num_sms * per_sm

    def page_us(self, tile: int) -> float:
        """A page under a tile: the slower of its bytes and its operations."""
        share = self.num_programs
        read = self.page_bytes / (self.card.dram_gb_s * 1e3 / share)
        operations = 4 * self.tiles.block_m[tile] * BLOCK_SIZE * self.head_dim
        peak = self.card.tensor_tflops * 1e6 * TENSOR_EFFICIENCY[tile]
        return max(read, operations / (peak / share))

    @property
    def partial_us(self) -> float:
        """Written and read once each, in fp32 and mostly in L2."""
        num_bytes = 2 * 4 * self.group * (self.head_dim + 1)
        return num_bytes / (self.card.l2_gb_s * 1e3 / self.num_programs)

    def work_costs(self, joined_pages: int = 1 << 16) -> _C.WorkCosts:
        """joined_pages: 0 gives every node of the forest a read of its own."""
        tiles = self.tiles
        return _C.WorkCosts(
            start=self.card.start_us,
            page=(self.page_us(NARROW), self.page_us(WIDE)),
            partial=self.partial_us,
            tile_rows=(tiles.block_m[NARROW] // self.group, tiles.block_m[WIDE] // self.group),
            pages_per_read=tiles.pages_per_read(),
            num_programs=self.num_programs,
            num_kv_heads=self.num_kv_heads,
            joined_pages=joined_pages,
            sliding_window=self.sliding_window or 0,
        )
