"""This engine as a contestant of `benchmarks.decode`."""

import time

from benchmarks.contestant import Contestant, Run, Workload, intervals
from parallel_decode.engine import Branch, Engine, SamplingParams, StepStats


class EngineContestant(Contestant):
    """Prefix, forks level by level, then one batch; never cut short, and sampling is timed."""

    name = "parallel_decode"

    def __init__(
        self, model: str, dtype: str, kv_dtype: str, *, threads: int, kv_tokens: int
    ) -> None:
        self.dtype, self.kv_dtype = dtype, kv_dtype
        self.engine = Engine.from_pretrained(
            model, dtype=dtype, kv_dtype=kv_dtype, threads=threads, kv_tokens=kv_tokens
        )

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        root = self.engine.prefill(prompt)
        self.engine.extend(
            root, SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        )
        tokens = root.output_tokens
        self.engine.prune(root)
        return tokens

    def run(self, ids: list[int], work: Workload, seconds: float) -> Run:
        engine = self.engine
        engine.clear_prefixes()
        start = time.perf_counter()
        [[prefix], *levels] = work.texts(ids)
        nodes = [engine.prefill(prefix)]
        made: list[Branch] = list(nodes)
        for (children, _), texts in zip(work.levels, levels):
            nodes = [child for node in nodes for child in engine.fork(node, children)]
            made += nodes
            for node, text in zip(nodes, texts):
                engine.extend(node, tokens=text)
        run = Run(time.perf_counter() - start)
        if work.suffix:
            leaves = [leaf for node in nodes for leaf in engine.fork(node, work.fan)]
            made += leaves
            times: list[float] = []  # the first is that of the first token's own step

            def note(stats: StepStats) -> None:
                times.append(time.perf_counter())

            stop = engine.observe(note)
            engine.extend(leaves, SamplingParams(max_tokens=work.suffix + 2, ignore_eos=True))
            stop()
            run.step_seconds = intervals(times)
        cache = engine.cache
        run.kv_bytes = int(engine.blocks_in_use * cache.block_size * cache.bytes_per_token)
        engine.prune(made)
        return run
