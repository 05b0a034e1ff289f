"""OpenVINO GenAI as contestants of `benchmarks.decode`, one a width."""

import time
from itertools import count

import numpy as np

from benchmarks import llama_cpp_context as low
from benchmarks.contestant import MIN_STEPS, Contestant, Run, Workload
from benchmarks.llama_cpp_peer import FILES
from parallel_decode.model.checkpoint import find_smollm2

try:
    import openvino
    import openvino_genai
except ImportError:  # `make peers` installs it
    openvino = openvino_genai = None

# Its own choice for the weights of each width; OpenVINO turns them into its own formats.
FORMATS = {"float16": "F16", "int8": "Q8_0", "int4": "Q4_1"}
CACHE_GIB = 1


class OpenVinoContestant(Contestant):
    """Its continuous batching: one request a prompt, whose copies share blocks of its cache.

    Cached prefixes are on, as a tree needs them. A step is the whole `step()` of its scheduler.
    """

    name = "openvino"
    kv_dtype = "int8"  # its default, and quicker than float16

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        if openvino_genai is None:
            raise SystemExit("OpenVINO GenAI is not installed here: make peers")
        if model != "smollm2":
            raise SystemExit(f"OpenVINO reads GGUF here, and {model!r} is none: --model smollm2")
        self.dtype = dtype
        weights, source = FORMATS[dtype], find_smollm2()
        own = f".{weights}." in source.name
        self.configuration = f"{weights}, paged u8 cache"
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_batched_tokens = 8192
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(source if own else low.requantised(source, weights, FILES)),
            scheduler,
            "CPU",
            {"INFERENCE_NUM_THREADS": threads, "KV_CACHE_PRECISION": "u8"},
        )
        self._requests = count()

    def _submit(self, prompt: list[int], num_tokens: int, **options: object) -> object:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_tokens
        config.ignore_eos = True
        for name, value in options.items():
            setattr(config, name, value)
        tokens = openvino.Tensor(np.array([prompt], np.int64))
        return self.pipeline.add_request(next(self._requests), tokens, config)

    def _finish(self) -> None:
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        handle = self._submit(prompt, num_tokens, do_sample=False)
        self._finish()
        return list(handle.read_all()[0].generated_ids)

    def run(self, ids: list[int], work: Workload, seconds: float) -> Run:
        # Another first token each time: the prompt of the last round is still in its cache.
        ids = [1000 + next(self._requests), *ids[1:]]
        prompts = work.prompts(ids)
        start = time.perf_counter()
        for prompt in prompts:  # in turn: each finds what it shares with those before
            handle = self._submit(prompt, 1)  # which is cancelled when nobody holds it
            self._finish()
            handle.read_all()
        run = Run(time.perf_counter() - start)
        if not work.suffix:
            return run
        options = {"do_sample": True, "num_return_sequences": work.fan}
        # Prompts take one or two steps of their own until all branches are there.
        handles = [self._submit(prompt, work.suffix + 2, **options) for prompt in prompts]
        while self.pipeline.has_non_finished_requests():
            start = time.perf_counter()
            self.pipeline.step()
            run.step_seconds.append(time.perf_counter() - start)
            done = len(run.step_seconds) - 2
            usage = self.pipeline.get_metrics()
            run.kv_bytes = max(
                run.kv_bytes, int(usage.cache_usage / 100 * usage.kv_cache_size_in_bytes)
            )
            if done >= MIN_STEPS and sum(run.step_seconds[2:]) > seconds:
                break
        for handle in handles:
            handle.cancel()
        self._finish()
        del run.step_seconds[:2]
        return run
