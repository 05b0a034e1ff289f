"""`StepGraphs`: plain decode steps on a GPU as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode.engine.kv_cache import KVCache
from parallel_decode.kernels import BranchPlan, DevicePlans
from parallel_decode.model.transformer import Transformer

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Steps are filled up to the next of these: each has its own graph."""
NO_SLOT = -1


class Graph(Protocol):
    def replay(self) -> None: ...


Capture = Callable[[Callable[[], None]], Graph]
"""Runs a function once or more and returns what runs it again with the same addresses."""


class CudaCapture:
    """Captures into graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Graph:
        # What is compiled or chosen at the first call must not fall into the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph


class StepGraphs:
    """Runs steps in which every branch computes one token. Inputs go to fixed addresses, rows that
    belong to nobody store nothing and are read by nobody.

    Args:
        model: on the GPU, with the Triton operations.
        cache: its keys and values.
        plans: of its attention.
        capture: `CudaCapture()`.
    """

    def __init__(
        self, model: Transformer, cache: KVCache, plans: DevicePlans, capture: Capture
    ) -> None:
        self._model = model
        self._cache = cache
        self._plans = plans
        self._capture = capture
        self._device = cache.storage.device
        self._inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._graphs: dict[tuple[int, tuple[Any, ...]], tuple[Graph, dict[str, Tensor]]] = {}

    def run(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int32],
        slots: NDArray[np.int64],
        plan: BranchPlan,
    ) -> tuple[Tensor, Tensor] | None:
        """One token a branch -> hidden states and logits, [num_branches, ...] of one's own; None
        where the step is none for a graph: too many rows, drafts, keys read at other positions."""
        num_rows = len(ids)
        rows = next((n for n in ROWS if n >= num_rows), None)
        if rows is None or plan.draft_masks is not None:
            return None
        plans = self._plans
        plans.begin(plan, rows)
        if plans.has_rotations(plan):
            plans.begin(plan)
            return None
        inputs = self._inputs_of(rows)
        columns: tuple[NDArray[Any], ...] = (ids, positions, slots)
        for target, values, filler in zip(inputs, columns, (0, 0, NO_SLOT), strict=True):
            padded = np.full(rows, filler, values.dtype)
            padded[:num_rows] = values
            target.copy_(torch.from_numpy(padded))
        self._plan = plan
        self._forget_moved(plans.layouts)
        if (rows, plans.layouts) not in self._graphs:
            outputs: dict[str, Tensor] = {}

            def run() -> None:
                hidden = self._model.forward(*inputs, self._plan, self._cache)
                outputs.update(hidden=hidden, logits=self._model.logits(hidden))

            graph = self._capture(run)
            # The layers' plans exist since the first run at the latest.
            self._graphs[rows, plans.layouts] = graph, outputs
        graph, outputs = self._graphs[rows, plans.layouts]
        graph.replay()
        # The next replay writes to the same place.
        return outputs["hidden"][:num_rows].clone(), outputs["logits"][:num_rows].clone()

    def _forget_moved(self, layouts: tuple[Any, ...]) -> None:
        """Drops graphs of plans whose buffers have been replaced by larger ones."""
        numbers = [number for number, _ in layouts]
        for key in [k for k in self._graphs if [n for n, _ in k[1]] != numbers]:
            del self._graphs[key]

    def _inputs_of(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        if rows not in self._inputs:
            self._inputs[rows] = (
                torch.empty(rows, dtype=torch.int64, device=self._device),
                torch.empty(rows, dtype=torch.int32, device=self._device),
                torch.empty(rows, dtype=torch.int64, device=self._device),
            )
        return self._inputs[rows]
