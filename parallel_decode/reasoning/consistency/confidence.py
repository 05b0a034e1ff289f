"""Confidence of a trace from the most likely tokens at each step (DeepConf, Fu et al., 2025).

Pure functions of the confidences of tokens, and the scorer that takes these from a branch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parallel_decode.engine import Branch

Summary = Literal["mean", "tail", "bottom", "lowest"]
SUMMARIES = ("mean", "tail", "bottom", "lowest")
SMALLEST_WINDOW = 8
WINDOWS_A_TRACE = 8
BOTTOM_SHARE = 0.1


def token_confidences(branch: Branch, top_k: int) -> list[float]:
    """-(1/k) Σ_j log p_j over the k most likely tokens, for each sampled token; the more peaked
    the distribution, the higher.

    Raises:
        ValueError: the branch was sampled without `SamplingParams.logprobs`.
    """
    tops = branch.top_logprobs
    cut = [top[:top_k] for top in tops if top is not None]
    if len(cut) < len(tops):
        raise ValueError(f"confidence needs SamplingParams(logprobs={top_k})")
    if not cut:
        return []
    sizes = np.array([len(top) for top in cut])
    sums = np.add.reduceat(np.concatenate(cut).astype(np.float64), np.cumsum(sizes) - sizes)
    return (-sums / sizes).tolist()


def relative_window(length: float) -> int:
    """Tokens of a window that suits traces of this length; the papers' 2048 suits long ones."""
    return max(SMALLEST_WINDOW, int(length) // WINDOWS_A_TRACE)


def group_confidences(confidences: Sequence[float], window: int) -> list[float]:
    """Means over every `window` tokens in a row; of a shorter trace, the mean of it all."""
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if not confidences:
        return []
    sums = np.cumsum([0.0, *confidences])
    width = min(window, len(confidences))
    groups: list[float] = ((sums[width:] - sums[:-width]) / width).tolist()
    return groups


def trace_confidence(confidences: Sequence[float], summary: Summary, window: int) -> float:
    """One number for a trace: the mean of it all, that of its last window ("tail"), that of the
    least tenth of its windows ("bottom"), or its lowest window. 0 for an empty trace."""
    groups = sorted(group_confidences(confidences, window))
    if not groups:
        return 0.0
    if summary == "mean":
        return math.fsum(confidences) / len(confidences)
    if summary == "tail":
        tail = confidences[-window:]
        return math.fsum(tail) / len(tail)
    num_lowest = 1 if summary == "lowest" else math.ceil(BOTTOM_SHARE * len(groups))
    return math.fsum(groups[:num_lowest]) / num_lowest


def keep_threshold(confidences: Sequence[float], keep: float) -> float:
    """The confidence that a share `keep` of the traces reaches, by linear interpolation."""
    return float(np.percentile(confidences, 100 * (1 - keep)))


@dataclass(frozen=True)
class TraceConfidence:
    """Scorer: the confidence of finished traces, which is not negative.

    Args:
        summary: how the windows of a trace make one number; see `trace_confidence`.
        window: tokens of a window; None for an eighth of the trace, at least 8.
        top_k: tokens whose log-probabilities count; branches must record as many.
    """

    summary: Summary = "bottom"
    window: int | None = None
    top_k: int = 20

    def __post_init__(self) -> None:
        if self.summary not in SUMMARIES:
            names = ", ".join(SUMMARIES)
            raise ValueError(f"summary must be one of {names}, got {self.summary!r}")
        for name in ("window", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def __call__(self, branches: Sequence[Branch]) -> list[float]:
        return [self.of(token_confidences(branch, self.top_k)) for branch in branches]

    def of(self, confidences: Sequence[float]) -> float:
        window = self.window or relative_window(len(confidences))
        return trace_confidence(confidences, self.summary, window)
