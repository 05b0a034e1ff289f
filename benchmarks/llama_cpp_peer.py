"""llama.cpp as contestants of `benchmarks.decode`, one a width, each in its best configuration.

Its steps are `llama_decode` until the logits are there; drawing the tokens costs it nothing.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import llama_cpp_context as low
from benchmarks.contestant import MIN_STEPS, Contestant, Run, Workload
from benchmarks.llama_cpp_context import Configuration, Context
from parallel_decode.model.checkpoint import find_smollm2

FILES = Path(__file__).parents[1] / "build" / "peers"
# The first of each is what a quick run takes, and what answers greedily.
FORMATS = {"float16": ("F16", "BF16"), "int8": ("Q8_0",), "int4": ("Q4_0", "Q4_1")}
KV_DTYPES = {"F16": "float16", "Q8_0": "int8"}
# Attention is tried with one format, the quickest to fill a cache; then the best of these split
# into one cache a sequence; then all formats with what was best.
TRIED_WITH = "Q4_0"
ATTENTION = (
    Configuration(TRIED_WITH),
    Configuration(TRIED_WITH, flash=True),
    Configuration(TRIED_WITH, "Q8_0", flash=True),
)
UBATCHES = (128, 256, 1024)
TRIAL_STEPS = 6
# A trial ends early where its best step is so much slower than the best configuration's.
HOPELESS = 1.6


class LlamaCpp:
    """The models in all formats, and what was chosen for each workload."""

    def __init__(self, model: str, threads: int, quick: bool) -> None:
        if low.llama_cpp is None:
            raise SystemExit("llama.cpp is not built here: make peers")
        if model != "smollm2":
            raise SystemExit(f"llama.cpp reads GGUF, and {model!r} is none: --model smollm2")
        low.silence()
        self.source = find_smollm2()
        self.threads, self.quick = threads, quick
        self._models: dict[str, ctypes.c_void_p] = {}
        self._chosen: dict[Workload, dict[str, Configuration]] = {}
        self._prompts: dict[tuple[str, bool, bool], ctypes.Array[ctypes.c_uint8]] = {}

    def model(self, weights: str) -> ctypes.c_void_p:
        if weights not in self._models:
            own = f".{weights}." in self.source.name
            path = self.source if own else low.requantised(self.source, weights, FILES)
            self._models[weights] = low.load(path)
        return self._models[weights]

    def context(self, config: Configuration, branches: int, cells: int, longest: int) -> Context:
        return Context(
            self.model(config.weights),
            config,
            sequences=branches,
            cells=cells,
            longest=longest,
            threads=self.threads,
        )

    def choose(self, ids: list[int], work: Workload) -> dict[str, Configuration]:
        """dtype -> the quickest configuration at this work, from short trials.

        Judged by each one's best step: the others' load on the machine only ever adds.
        """
        if work not in self._chosen:
            self._chosen[work] = dict(self._tried(ids, work))
            self._prompts.clear()
        return self._chosen[work]

    def _tried(self, ids: list[int], work: Workload) -> Iterator[tuple[str, Configuration]]:
        if self.quick:  # the attention that has been the best of all at 32 branches
            for dtype, formats in FORMATS.items():
                yield dtype, replace(ATTENTION[0], weights=formats[0])
            return
        costs: dict[Configuration, float] = {}

        def attempt(config: Configuration) -> float:
            best = min(costs.values(), default=float("inf"))
            if config not in costs:
                costs[config] = self.cost(config, ids, work, give_up=HOPELESS * best)
            return costs[config]

        attention = min(ATTENTION, key=attempt)
        if work.branches > 1:  # one sequence is the same in both
            attention = min(attention, replace(attention, unified=False), key=attempt)
        if not work.suffix:
            sizes = [replace(attention, ubatch=ubatch) for ubatch in UBATCHES]
            attention = min([attention, *sizes], key=attempt)
        for dtype, formats in FORMATS.items():
            costs.clear()
            yield dtype, min((replace(attention, weights=w) for w in formats), key=attempt)

    def cost(self, config: Configuration, ids: list[int], work: Workload, give_up: float) -> float:
        """Seconds of the best of a few steps; of the prompt, where that alone is asked for."""
        if not work.suffix:
            return min(self.run(config, ids, work, 0.0).prefill_seconds for _ in range(2))
        short = replace(work, suffix=TRIAL_STEPS)
        return min(self.run(config, ids, short, float("inf"), give_up, trial=True).step_seconds)

    def run(
        self,
        config: Configuration,
        ids: list[int],
        work: Workload,
        seconds: float,
        give_up: float = float("inf"),
        trial: bool = False,
    ) -> Run:
        """Stops after `seconds`, or when the first steps are all slower than `give_up`.

        A trial takes the prompt's keys from an earlier one, of whatever weights, if it can.
        """
        rng = np.random.default_rng(0)
        steps = work.suffix + 1 if work.suffix else 0
        cells, longest = work.stored + work.branches * steps, work.context + steps
        with self.context(config, work.branches, cells, longest) as context:
            kind = (config.kv, config.flash, config.unified)
            if trial and kind in self._prompts:
                context.restore(self._prompts[kind])
                run = Run(0.0)
                logits = np.zeros((1, context.vocab_size), np.float32)
            else:
                run, logits = self._fill(context, ids, work)
                if trial and not work.levels:
                    self._prompts[kind] = context.saved()
            logits = self._share_leaves(context, logits, work)
            sequences = range(work.branches)
            for step in range(steps):
                took, logits = context.decode(
                    draw(logits, rng),
                    [work.context + step] * work.branches,
                    sequences,
                    [True] * work.branches,
                )
                if step:  # the first also copies split caches
                    run.step_seconds.append(took)
                done = len(run.step_seconds)
                if done >= MIN_STEPS and sum(run.step_seconds) > seconds:
                    break
                if done == 2 and min(run.step_seconds) > give_up:
                    break
            if not config.unified:
                cells = work.branches * longest
            run.kv_bytes = int(cells * low.cell_bytes(self.model(config.weights), config.kv))
        return run

    def _fill(
        self, context: Context, ids: list[int], work: Workload
    ) -> tuple[Run, NDArray[np.float32]]:
        """The tree in the cache -> (its seconds, logits of each last node)."""
        [prefix, *levels] = work.texts(ids)
        took, logits = context.append(prefix, [0], 0)
        run, start, nodes = Run(took), work.prefix, 1
        for (children, tokens), texts in zip(work.levels, levels):
            # A node is held by the sequence of the first leaf below it.
            above, nodes = work.branches // nodes, nodes * children
            stride = work.branches // nodes
            for node in range(nodes):
                if node % children:
                    context.share(node // children * above, node * stride)
            took, logits = context.append(texts, [n * stride for n in range(nodes)], start)
            run.prefill_seconds += took
            start += tokens
        return run, logits

    def _share_leaves(
        self, context: Context, logits: NDArray[np.float32], work: Workload
    ) -> NDArray[np.float32]:
        """Each last node in the sequences of all its leaves -> logits for each leaf."""
        for leaf in range(work.branches):
            if leaf % work.fan:
                context.share(leaf - leaf % work.fan, leaf)
        return np.repeat(logits, work.fan, axis=0)

    def greedy(self, weights: str, prompt: list[int], num_tokens: int) -> list[int]:
        room = len(prompt) + num_tokens
        with self.context(Configuration(weights), 1, room, room) as context:
            _, logits = context.append([prompt], [0], 0)
            tokens = [int(logits[0].argmax())]
            while len(tokens) < num_tokens:
                _, logits = context.decode(
                    tokens[-1:], [len(prompt) + len(tokens) - 1], [0], [True]
                )
                tokens.append(int(logits[0].argmax()))
        return tokens


class LlamaCppContestant(Contestant):
    """llama.cpp with the weights of one width."""

    name = "llama.cpp"

    def __init__(self, library: LlamaCpp, dtype: str) -> None:
        self.library, self.dtype, self.kv_dtype = library, dtype, "float16"

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        return self.library.greedy(FORMATS[self.dtype][0], prompt, num_tokens)

    def prepare(self, ids: list[int], work: Workload) -> None:
        config = self.library.choose(ids, work)[self.dtype]
        self.kv_dtype, self.configuration = KV_DTYPES[config.kv], str(config)

    def run(self, ids: list[int], work: Workload, seconds: float) -> Run:
        return self.library.run(self.library.choose(ids, work)[self.dtype], ids, work, seconds)


def draw(logits: NDArray[np.float32], rng: np.random.Generator) -> list[int]:
    """One token a row, at temperature 1."""
    sums = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
    points = rng.random(len(logits)) * sums[:, -1]
    return [int(row.searchsorted(point)) for row, point in zip(sums, points)]
