"""`DevicePlan`: a step's work items in the memory of a GPU."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.kernels.launch import Launch
from parallel_decode.kernels.plan import BranchPlan

ALIGNMENT = 4
"""Of a section of the packed plan, in int32: 16 bytes, one vector load."""


class DevicePlan:
    """What `branch_attention` reads for all layers of a step. One buffer holds every section, so
    that a plan goes to the device in one copy, and to the same addresses while it fits them.

    Args:
        launch: the attention that the plan is for.
        device: where it runs.
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.launch = launch
        self.device = device
        self.ones = torch.ones(launch.num_kv_heads, device=device)
        self._costs = launch.work_costs()
        self._capacity: tuple[int, ...] = (0, 0, 0, 0, 0)
        self._tables: list[_C.BlockTable] = []

    def make(self, plan: BranchPlan) -> None:
        """Cuts the plan of a step into items and sends them. Where its tables are those of the step
        before and have only grown, the items of that step are kept and lengthened."""
        kept = (
            plan.draft_masks is None
            and len(plan.tables) == len(self._tables)
            and len(plan.positions) == len(plan.tables)
            and all(map(_is, plan.tables, self._tables))
            and self._work.advance(plan.positions)
        )
        self.was_kept = bool(kept)
        if not kept:
            self._tables = list(plan.tables)
            self._work = _C.WorkPlan(self._tables, plan.native, self._costs)
        self._send(plan.draft_masks is not None)

    def _send(self, has_drafts: bool) -> None:
        work = self._work
        self.num_rows = work.num_rows
        self.num_launches = work.num_launches
        self.has_drafts = has_drafts
        cos, sin = work.rotations
        self.has_rotations = cos.size > self.launch.head_dim // 2
        needed = (work.num_items, work.num_pages, work.num_rows, work.num_runs, work.num_partials)
        if any(n > c for n, c in zip(needed, self._capacity, strict=True)):
            self._allocate(tuple(map(_with_room, needed, self._capacity)))
        max_items, _, max_rows, _, _ = self._capacity
        work.pack(self._offsets, max_items, max_rows, self._host.ctypes.data)
        self._buffer.copy_(self._staging, non_blocking=True)
        if self.has_rotations:
            self.rotation_cos = torch.from_numpy(cos).to(self.device)
            self.rotation_sin = torch.from_numpy(sin).to(self.device)

    def _allocate(self, capacity: tuple[int, ...]) -> None:
        items, pages, rows, runs, partials = capacity
        sizes = (
            *(items * 8, pages, pages, pages, pages),
            *(rows + 1, runs * 3, rows, rows, rows, rows * 2),
        )
        padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        offsets = np.cumsum([0, *padded])
        self._offsets = offsets[:-1].tolist()
        pinned = self.device.type == "cuda"
        self._staging = torch.empty(int(offsets[-1]), dtype=torch.int32, pin_memory=pinned)
        self._host: NDArray[np.int32] = self._staging.numpy()
        self._buffer = torch.empty(int(offsets[-1]), dtype=torch.int32, device=self.device)
        views = [
            self._buffer[offset : offset + size]
            for offset, size in zip(self._offsets, sizes, strict=True)
        ]
        self.items, self.page_block, self.page_first, self.page_span, self.page_position = views[:5]
        self.merge_indptr, self.merge_runs, self.num_visible, self.positions = views[5:9]
        self.draft_begin, self.draft_mask = views[9], views[10].view(torch.int64)
        self.rotation_cos = torch.empty(0, device=self.device)
        self.rotation_sin = self.rotation_cos
        heads, head_dim = self.launch.num_heads, self.launch.head_dim
        self.partials: tuple[Tensor, Tensor] = (
            torch.empty(partials, heads, head_dim, device=self.device),
            torch.empty(partials, heads, device=self.device),
        )
        self._capacity = capacity

    @property
    def grid_items(self) -> int:
        return self._work.num_items

    @property
    def kv_bytes_read(self) -> int:
        """Of one layer, by all items."""
        return self._work.pages_read * self.launch.page_bytes * self.launch.num_kv_heads


def _is(a: object, b: object) -> bool:
    return a is b


def _with_room(needed: int, capacity: int) -> int:
    """A quarter more than is needed, so that a growing step seldom moves its buffers."""
    return capacity if needed <= capacity else needed + needed // 4 + 16
