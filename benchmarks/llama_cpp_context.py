"""llama.cpp's low-level API: one model file, one context over it, batches and their seconds."""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
except ImportError:  # `make peers` builds it
    llama_cpp = LlamaPromptLookupDecoding = None

CACHE_ALIGNMENT = 256
MAX_BATCH = 2048
BYTES = {"F16": 2.0, "Q8_0": 34 / 32}


@dataclass(frozen=True)
class Configuration:
    """weights, kv: ggml's names; unified: one cache for all sequences, else one for each."""

    weights: str
    kv: str = "F16"
    flash: bool = False
    unified: bool = True
    ubatch: int = 512

    def __str__(self) -> str:
        parts = [self.weights, f"{'unified' if self.unified else 'split'} {self.kv} cache"]
        parts += ["flash attention"] * self.flash + [f"ubatch {self.ubatch}"] * (self.ubatch != 512)
        return ", ".join(parts)


def silence() -> None:
    """No log on stderr from here on."""
    llama_cpp.llama_log_set(_ignore, None)


if llama_cpp is not None:

    @llama_cpp.llama_log_callback
    def _ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        pass


def requantised(source: Path, weights: str, folder: Path) -> Path:
    """`source` in another format, made once; the embedding, which is the head too, as llama.cpp
    has it for that format."""
    path = folder / f"{source.stem}.{weights}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{weights}")
        params.allow_requantize = True
        partial = path.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(
            str(source).encode(), str(partial).encode(), ctypes.byref(params)
        ):
            raise RuntimeError(f"llama.cpp cannot make {weights} of {source}")
        partial.rename(path)
    return path


def cell_bytes(model: ctypes.c_void_p, kv: str) -> float:
    """Of one token's keys and values, in a cache of ggml's type `kv`."""
    head_dim = llama_cpp.llama_model_n_embd(model) // llama_cpp.llama_model_n_head(model)
    width = head_dim * llama_cpp.llama_model_n_head_kv(model)
    return 2 * llama_cpp.llama_model_n_layer(model) * width * BYTES[kv]


def load(path: Path) -> ctypes.c_void_p:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    return model


class Context:
    """Sequences over one model. Use it in `with`: its memory goes at the end."""

    def __init__(
        self,
        model: ctypes.c_void_p,
        config: Configuration,
        *,
        sequences: int,
        cells: int,
        longest: int,
        threads: int,
    ) -> None:
        """cells: tokens stored in all where they are shared; longest: tokens of one sequence."""
        params = llama_cpp.llama_context_default_params()
        each = -(-longest // CACHE_ALIGNMENT) * CACHE_ALIGNMENT
        params.n_ctx = cells if config.unified else sequences * each
        params.n_batch, params.n_ubatch = MAX_BATCH, config.ubatch
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = config.unified
        params.flash_attn_type = int(config.flash)
        params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{config.kv}")
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no context for {config}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *error: object) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def share(self, source: int, target: int) -> None:
        """All of `source` for `target`, too: cells if unified, else a copy with the next batch."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def truncate(self, sequence: int, num_tokens: int) -> None:
        """Forgets all of it behind its first tokens."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, num_tokens, -1)

    def saved(self) -> ctypes.Array[ctypes.c_uint8]:
        """Sequence 0, for `restore` in a context with the same kind of cache and of attention."""
        size = llama_cpp.llama_state_seq_get_size(self._context, 0)
        data = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self._context, data, size, 0) != size:
            raise RuntimeError("llama.cpp saved less than it said")
        return data

    def restore(self, data: ctypes.Array[ctypes.c_uint8]) -> None:
        if not llama_cpp.llama_state_seq_set_data(self._context, data, len(data), 0):
            raise RuntimeError("llama.cpp cannot take back what it saved")

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        outputs: Sequence[bool],
    ) -> tuple[float, NDArray[np.float32]]:
        """(seconds until the logits are there, logits of the rows in `outputs`)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, output) in enumerate(
            zip(tokens, positions, sequences, outputs, strict=True)
        ):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, output
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self._context, batch)
        logits = llama_cpp.llama_get_logits(self._context)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        shape = (sum(outputs), self.vocab_size)
        rows = np.ctypeslib.as_array(logits, shape) if shape[0] else np.empty(shape, np.float32)
        return seconds, rows

    def append(
        self, texts: Sequence[Sequence[int]], sequences: Sequence[int], start: int
    ) -> tuple[float, NDArray[np.float32]]:
        """Each text, from position `start`, in its sequence -> (seconds, logits after each)."""
        rows = [
            (token, start + i, sequence, i == len(text) - 1)
            for text, sequence in zip(texts, sequences, strict=True)
            for i, token in enumerate(text)
        ]
        seconds, ends = 0.0, []
        for first in range(0, len(rows), MAX_BATCH):
            part = rows[first : first + MAX_BATCH]
            took, logits = self.decode(*zip(*part))
            seconds += took
            ends.append(logits.copy())
        return seconds, np.concatenate(ends)
