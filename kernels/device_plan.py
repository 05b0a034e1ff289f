"""`DevicePlan`: a step's work items in the memory of a GPU; `DevicePlans`: those of all layers."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.launch import AttentionShape, Card, Launch, Tiles, choose_tiles
from parallel_decode.kernels.plan import BLOCK_SIZE, BranchPlan

ALIGNMENT = 4
"""Of a section of the packed plan, in int32: 16 bytes, one vector load."""

MAX_RETRIED_PAGES = 2048
"""Of a plan that may be made again with other tiles: that takes no longer than the first time."""


class PlanTensors(NamedTuple):
    """A plan's sections on the device; csrc/work_plan.h says what is in them."""

    items: Tensor
    pages: Tensor  # [6, max_pages]: block, first, span, position, row_begin, row_end
    merge_indptr: Tensor
    merge_runs: Tensor
    num_visible: Tensor
    positions: Tensor
    draft_begin: Tensor
    draft_mask: Tensor
    rotation_cos: Tensor
    rotation_sin: Tensor
    partial_out: Tensor
    partial_lse: Tensor


class PlanNumbers(NamedTuple):
    """What a plan fixes of its launches."""

    num_kv_heads: int
    group: int
    num_items: int
    num_launches: int
    has_drafts: int
    has_rotations: int
    narrow_m: int
    wide_m: int
    narrow_n: int
    wide_n: int
    num_warps: int
    num_stages: int


class DevicePlan:
    """What `branch_attention` reads for all layers of a step. One buffer holds every section, so
    that a plan goes to the device in one copy, and to the same addresses while it fits them.

    Args:
        shape: the attention that the plan is for.
        card: that it is laid out for.
        device: where it runs.
        joined_pages: see `Launch.work_costs`.
    """

    def __init__(
        self, shape: AttentionShape, card: Card, device: torch.device, joined_pages: int = 1 << 16
    ) -> None:
        self.shape = shape
        self.device = device
        self.ones = torch.ones(shape.num_kv_heads, device=device)
        self.nothing = torch.empty(0, device=device)
        self.launch: Launch
        self.work = _C.WorkPlan()
        self.tensors: PlanTensors
        self.numbers: PlanNumbers
        self.num_rows = self.num_launches = 0
        self._card = card
        self._joined_pages = joined_pages
        self._capacity: tuple[int, ...] = (0, 0, 0, 0, 0)
        self._num_layouts = 0
        self._tables: list[_C.BlockTable] = []
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def make(self, plan: BranchPlan, padded_rows: int | None = None) -> None:
        """Cuts the plan of a step into items and sends them. Where its tables are those of the step
        before and have only grown, the items of that step are kept and lengthened.

        padded_rows: rows of q, of which the last ones belong to nobody. The launches of a plan made
        so depend on `layout` alone and not on the step, and a graph of them can be replayed.
        """
        kept = (
            plan.draft_masks is None
            and len(plan.tables) == len(self._tables)
            and len(plan.positions) == len(plan.tables) == self.work.num_rows
            and all(map(_is, plan.tables, self._tables))
            and self.work.advance(plan.positions)
        )
        self.was_kept = bool(kept)
        if not kept:
            self._tables = list(plan.tables)
            self._lay_out(plan)
        self._send(plan.draft_masks is not None, padded_rows)
        work = self.work
        read = work.pages_read * BLOCK_SIZE
        plan.count(work.tokens_stored, work.tokens_logical, read, self.num_launches)

    def _lay_out(self, plan: BranchPlan) -> None:
        """Where a high tile leaves a part of the card without work, the lower one is tried too."""
        shape = self.shape
        tiles = choose_tiles(shape, self._card, plan.native.widest_node)
        lower = choose_tiles(shape, self._card, 1)
        self._cut(plan, tiles)
        busy = self.work.num_items * shape.num_kv_heads
        small = self.work.num_pages <= MAX_RETRIED_PAGES
        if lower != tiles and small and busy < self.launch.num_programs:
            predicted_us = self.work.predicted_us
            self._cut(plan, lower)
            if self.work.predicted_us >= predicted_us:
                self._cut(plan, tiles)

    def _cut(self, plan: BranchPlan, tiles: Tiles) -> None:
        self.launch = Launch(self.shape, self._card, tiles)
        self.work.make(plan.native, self.launch.work_costs(self._joined_pages))

    def _send(self, has_drafts: bool, padded_rows: int | None) -> None:
        work = self.work
        padded = padded_rows is not None
        self.num_rows = work.num_rows if padded_rows is None else padded_rows
        if self.num_rows < work.num_rows:
            raise ValueError(f"{work.num_rows} rows do not fit {padded_rows}")
        self.num_launches = 2 if padded else work.num_launches
        cos, sin = work.rotations
        has_rotations = cos.size > self.shape.head_dim // 2
        needed = (work.num_items, work.num_pages, self.num_rows, work.num_runs, work.num_partials)
        if any(n > c for n, c in zip(needed, self._capacity, strict=True)):
            self._allocate(tuple(map(_with_room, needed, self._capacity)))
        max_items, max_pages, max_rows, _, _ = self._capacity
        if self._sent is not None:
            self._sent.synchronize()  # the last plan may still be on its way
        work.pack(self._offsets, max_items, max_pages, max_rows, self._host.ctypes.data)
        self._buffer.copy_(self._staging, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        if has_rotations:
            self.tensors = self.tensors._replace(
                rotation_cos=torch.from_numpy(cos).to(self.device),
                rotation_sin=torch.from_numpy(sin).to(self.device),
            )
        tiles = self.launch.tiles
        self.numbers = PlanNumbers(
            self.shape.num_kv_heads,
            self.shape.group,
            max_items if padded else work.num_items,
            self.num_launches,
            has_drafts,
            has_rotations,
            *tiles.block_m,
            *tiles.block_n,
            tiles.num_warps,
            tiles.num_stages,
        )

    def _allocate(self, capacity: tuple[int, ...]) -> None:
        items, pages, rows, runs, partials = capacity
        sizes = (
            *(items * 8, pages * 6, rows + 1, runs * 3),
            *(rows, rows, rows, rows * 2),
        )
        padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        offsets = np.cumsum([0, *padded])
        self._offsets = offsets[:-1].tolist()
        pinned = self.device.type == "cuda"
        self._staging = torch.empty(int(offsets[-1]), dtype=torch.int32, pin_memory=pinned)
        self._host: NDArray[np.int32] = self._staging.numpy()
        self._buffer = torch.empty(int(offsets[-1]), dtype=torch.int32, device=self.device)
        sections = [
            self._buffer[offset : offset + size]
            for offset, size in zip(self._offsets, sizes, strict=True)
        ]
        of_items, of_pages, merge_indptr, merge_runs = sections[:4]
        num_visible, positions, draft_begin, draft_mask = sections[4:]
        heads, head_dim = self.shape.num_heads, self.shape.head_dim
        self.tensors = PlanTensors(
            of_items,
            of_pages.view(6, pages),
            merge_indptr,
            merge_runs,
            num_visible,
            positions,
            draft_begin,
            draft_mask.view(torch.int64),
            self.nothing,
            self.nothing,
            torch.empty(partials, heads, head_dim, device=self.device),
            torch.empty(partials, heads, device=self.device),
        )
        self._capacity = capacity
        self._num_layouts += 1

    @property
    def layout(self) -> tuple[int, Tiles]:
        """What padded launches depend on: where the plan's sections lie, and the tiles."""
        return self._num_layouts, self.launch.tiles

    @property
    def kv_bytes_read(self) -> int:
        """Of one layer, by all items."""
        return self.work.pages_read * self.shape.page_bytes * self.shape.num_kv_heads


class DevicePlans:
    """The device plans of a model's attention shapes: one, or one more for each sliding window.

    Args:
        card: that they are laid out for.
        device: where they run.
    """

    def __init__(self, card: Card, device: torch.device) -> None:
        self._card = card
        self._device = device
        self._plans: dict[AttentionShape, DevicePlan] = {}
        self._step: BranchPlan | None = None
        self._padded_rows: int | None = None
        self._made: set[AttentionShape] = set()

    def begin(self, plan: BranchPlan, padded_rows: int | None = None) -> None:
        """The step that `plan` is of begins; see `DevicePlan.make`."""
        self._step, self._padded_rows = plan, padded_rows
        self._made.clear()
        if padded_rows is not None:
            for shape in self._plans:
                self.of(plan, shape)

    def of(self, plan: BranchPlan, shape: AttentionShape) -> DevicePlan:
        """The step's plan for layers of this shape, made when the first of them asks."""
        if plan is not self._step:
            self.begin(plan)
        device_plan = self._plans.get(shape)
        if device_plan is None:
            device_plan = self._plans[shape] = DevicePlan(shape, self._card, self._device)
        if shape not in self._made:
            device_plan.make(plan, self._padded_rows)
            self._made.add(shape)
        return device_plan

    def has_rotations(self, plan: BranchPlan) -> bool:
        """Whether some table of the step has keys that are read at other positions."""
        made = [self._plans[shape].numbers.has_rotations for shape in self._made]
        return any(made) if made else plan.native.num_rotations > 1

    @property
    def layouts(self) -> tuple[tuple[int, Tiles], ...]:
        """Of all shapes; see `DevicePlan.layout`."""
        return tuple(plan.layout for plan in self._plans.values())


def _is(a: object, b: object) -> bool:
    return a is b


def _with_room(needed: int, capacity: int) -> int:
    """A quarter more than is needed, so that a growing step seldom moves its buffers."""
    return capacity if needed <= capacity else needed + needed // 4 + 16
