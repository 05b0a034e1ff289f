"""`NextTokenLaws`: what a model says of the token behind a prompt and any few tokens more."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from parallel_decode import Engine, SamplingParams
from parallel_decode.kernels import ReferenceOps

Path = tuple[int, ...]

AT_ONCE = 256
NEGLIGIBLE = 1e-6
"""Paths of less probability are not gone along."""


class NextTokenLaws:
    """Distributions as `params` draw from them, by the definition of the filters; each prefix is
    computed by a plain prefill, once."""

    def __init__(self, engine: Engine, prompt: Sequence[int], params: SamplingParams) -> None:
        self._engine, self._prompt, self._params = engine, list(prompt), params
        self._laws: dict[Path, Tensor] = {}

    def of(self, paths: Sequence[Path]) -> Tensor:
        """[num_paths, vocab_size] fp32, behind the prompt and each path."""
        missing = [path for path in dict.fromkeys(paths) if path not in self._laws]
        for first in range(0, len(missing), AT_ONCE):
            part = missing[first : first + AT_ONCE]
            self._laws.update(zip(part, self._computed(part), strict=True))
        return torch.stack([self._laws[path] for path in paths])

    def _computed(self, paths: Sequence[Path]) -> Tensor:
        roots = [self._engine.prefill([*self._prompt, *path]) for path in paths]
        logits = torch.stack(self._engine.score(roots, distribution=True))
        self._engine.prune(roots)
        params, count = self._params, len(paths)
        return ReferenceOps().probabilities(
            logits,
            np.full(count, params.temperature),
            np.full(count, params.top_k),
            np.full(count, params.top_p),
            np.full(count, params.min_p),
        )

    def outputs(self, length: int) -> dict[Path, float]:
        """The probable outputs of so many tokens, with their probabilities."""
        level: dict[Path, float] = {(): 1.0}
        for _ in range(length):
            laws = self.of(list(level)).double()
            level = dict(_continued(level, laws / laws.sum(1, keepdim=True)))
        return level


def _continued(level: dict[Path, float], laws: Tensor) -> Iterator[tuple[Path, float]]:
    for (path, probability), law in zip(level.items(), laws, strict=True):
        for token in (law * probability > NEGLIGIBLE).nonzero()[:, 0].tolist():
            yield (*path, token), probability * float(law[token])
