"""Hugging Face transformers as a contestant of `benchmarks.decode`."""

import time
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmarks.contestant import MIN_STEPS, Contestant, Run, Workload, intervals
from parallel_decode.engine.kv_cache import bytes_per_token
from parallel_decode.model.checkpoint import open_checkpoint

# Rows with more keys and values would take most of an hour, and of a small machine's memory.
MAX_KV_BYTES = 4 << 30


class _Clock(StoppingCriteria):
    """Notes the time after each token, and stops all when their seconds are over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        late = self.times[-1] - self.times[0] > self.seconds
        return torch.full((len(input_ids),), late and len(self.times) > MIN_STEPS)


class TransformersPeer(Contestant):
    """`generate` with sampling, over keys of the prompt that were computed once."""

    name = "transformers"

    def __init__(self, model: str, dtype: str) -> None:
        self.dtype = self.kv_dtype = dtype
        checkpoint = open_checkpoint(model)
        config = checkpoint.config
        # The weights come from the same file through this package: transformers itself reads GGUF
        # only with more packages.
        peer_config = AutoConfig.for_model(
            config.architecture,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
        )
        self.model = AutoModelForCausalLM.from_config(peer_config).eval()
        state = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        self.model.tie_weights()
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"weights do not fit: {missing=}, {unexpected=}")
        self.model.to(getattr(torch, dtype))
        self._token_bytes = bytes_per_token(
            config.num_layers, config.num_kv_heads, config.head_dim, getattr(torch, dtype)
        )

    def takes(self, work: Workload) -> bool:
        """Its keys are copied for every branch, and once more whenever they grow."""
        num_tokens = work.branches * (work.context + work.suffix)
        return num_tokens * self._token_bytes <= MAX_KV_BYTES

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
    def run(self, ids: list[int], work: Workload, seconds: float) -> Run:
        prompts = torch.tensor(work.prompts(ids))
        start = time.perf_counter()
        cache = DynamicCache(config=self.model.config)
        self.model(prompts[:, :-1], cache=cache, use_cache=True, logits_to_keep=1)
        run = Run(time.perf_counter() - start)
        if not work.suffix:
            return run
        cache.batch_repeat_interleave(work.fan)
        clock = _Clock(seconds)
        self.model.generate(
            prompts.repeat_interleave(work.fan, 0),
            attention_mask=torch.ones(work.branches, work.context, dtype=torch.int64),
            cache=cache,
            do_sample=True,
            top_k=0,
            min_new_tokens=work.suffix + 1,
            max_new_tokens=work.suffix + 1,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        run.step_seconds = intervals(clock.times)
        run.kv_bytes = sum(
            t.numel() * t.element_size()
            for layer in cache.layers
            for t in (layer.keys, layer.values)
        )
        return run
