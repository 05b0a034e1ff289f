"""Pools on disk: what one experiment has sampled the next one finds.

A file holds one pool. Its name says what the samples depend on: the files of the model and of the
verifiers, the questions, how samples are drawn, and the seed. What the checker says is not stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

import parallel_decode
from benchmarks.experiments.pool import Pool, Trace, verdict
from parallel_decode import SamplingParams
from parallel_decode.model.checkpoint import find_smollm2, model_folder
from parallel_decode.model.hub import snapshot
from parallel_decode.questions import Question

FORMAT = 1


class PoolCache:
    """A folder of pools. Files that are damaged are as if they were not there.

    Args:
        folder: is made when the first pool is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str, questions: Sequence[Question], n: int, seed: int) -> Pool | None:
        """The first n traces of a stored pool that has as many, of the smallest such one."""
        sizes = sorted(
            int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"{key}-*.npz")
        )
        for size in (size for size in sizes if size >= n):
            try:
                return _load(self._path(key, size), questions, n, size, seed)
            except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
                continue
        return None

    def store(self, key: str, pool: Pool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key, len(pool.traces[0]))
        # Nobody finds half a file, should this stop.
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **_arrays(pool))
        part.replace(path)

    def _path(self, key: str, n: int) -> Path:
        return self._folder / f"{key}-{n}.npz"


def pool_key(
    model: str,
    verifier: str | None,
    questions: Sequence[Question],
    params: SamplingParams,
    seed: int,
    scorers: Iterable[str],
) -> str:
    """What the samples of a pool and their scores depend on, as 16 hexadecimal digits."""
    parts = [
        FORMAT,
        parallel_decode.__version__,
        fingerprint(model),
        fingerprint(verifier) if verifier else None,
        [question.prompt for question in questions],
        repr(params),
        seed,
        sorted(scorers),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def fingerprint(source: str) -> str:
    """Of the files of a model, as `open_checkpoint` takes it."""
    path = find_smollm2() if source == "smollm2" else model_folder(source)
    if not path.exists():
        path = snapshot(source, allow_download=False)
    digest = hashlib.sha256()
    kinds = {".json", ".safetensors", ".gguf", ".jinja"}
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in kinds)
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _arrays(pool: Pool) -> dict[str, NDArray]:
    traces = [trace for row in pool.traces for trace in row]
    columns = {
        "lengths": np.array([trace.num_tokens for trace in traces]),
        "tokens": np.concatenate([trace.tokens for trace in traces]).astype(np.int32),
        "logprobs": np.concatenate([trace.logprobs for trace in traces]),
        "entropies": np.concatenate([trace.entropies for trace in traces]),
        "self_certainty": np.array([trace.self_certainty for trace in traces]),
        "texts": np.frombuffer(json.dumps([t.text for t in traces]).encode(), np.uint8),
    }
    for name in traces[0].scores:
        columns[f"score {name}"] = np.array([trace.scores[name] for trace in traces])
    for name in traces[0].steps:
        columns[f"steps {name}"] = np.concatenate([trace.steps[name] for trace in traces])
        columns[f"counts {name}"] = np.array([len(trace.steps[name]) for trace in traces])
    return columns


def _load(path: Path, questions: Sequence[Question], n: int, size: int, seed: int) -> Pool:
    with np.load(path) as file:
        columns: Mapping[str, Any] = {name: file[name] for name in file.files}
    texts = json.loads(columns["texts"].tobytes())
    if len(texts) != len(questions) * size:
        raise ValueError(f"{path} holds {len(texts)} traces")
    pieces = {
        name: _split(columns[name], columns["lengths"])
        for name in ("tokens", "logprobs", "entropies")
    }
    names = {kind: _names(columns, kind) for kind in ("score ", "steps ")}
    steps = {
        name: _split(columns[f"steps {name}"], columns[f"counts {name}"])
        for name in names["steps "]
    }

    def trace(question: Question, i: int) -> Trace:
        return Trace(
            texts[i],
            *verdict(question, texts[i]),
            tokens=pieces["tokens"][i].astype(np.int64),
            logprobs=pieces["logprobs"][i],
            entropies=pieces["entropies"][i],
            self_certainty=float(columns["self_certainty"][i]),
            scores={name: float(columns[f"score {name}"][i]) for name in names["score "]},
            steps={name: rows[i].tolist() for name, rows in steps.items()},
        )

    return Pool(
        list(questions),
        [[trace(q, number * size + i) for i in range(n)] for number, q in enumerate(questions)],
        seed,
    )


def _names(columns: Mapping[str, Any], kind: str) -> list[str]:
    return [name.removeprefix(kind) for name in columns if name.startswith(kind)]


def _split(values: NDArray, lengths: NDArray) -> list[NDArray]:
    """Of values one behind the other, those of each trace."""
    ends = list(accumulate(lengths.tolist()))
    if ends[-1] != len(values):
        raise ValueError(f"{len(values)} values for lengths of {ends[-1]} in all")
    return [values[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]
