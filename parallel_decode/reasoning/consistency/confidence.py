"""Confidence of a trace from the most likely tokens at each step (DeepConf, Fu et al., 2025).

Pure functions of the confidences of tokens, and the scorer that takes these from a branch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parallel_decode.engine import Branch
from parallel_decode.reasoning.at_least import at_least

Summary = Literal["mean", "tail", "bottom", "lowest"]
SUMMARIES = ("mean", "tail", "bottom", "lowest")
SMALLEST_WINDOW = 8
WINDOWS_A_TRACE = 8
BOTTOM_SHARE = 0.1
NOTHING = np.zeros(1)


def token_confidences(branch: Branch, top_k: int) -> NDArray[np.float64]:
    """-(1/k) Σ_j log p_j over the k most likely tokens, for each sampled token; the more peaked
    the distribution, the higher.

    Raises:
        ValueError: the branch was sampled without `SamplingParams.logprobs`.
    """
    recorded = branch.top_logprobs
    tops = [top for top in recorded if top is not None]
    if len(tops) < len(recorded):
        raise ValueError(f"confidence needs SamplingParams(logprobs={top_k})")
    sizes = np.fromiter(map(len, tops), np.int64, len(tops))
    starts, used = np.cumsum(sizes) - sizes, np.minimum(sizes, top_k)
    # A zero behind the last, where its sum may end.
    logprobs = np.concatenate([*tops, NOTHING], dtype=np.float64)
    sums = np.add.reduceat(logprobs, np.column_stack((starts, starts + used)).ravel())[::2]
    return -sums / used


def relative_window(length: float) -> int:
    """Tokens of a window that suits traces of this length; the papers' 2048 suits long ones."""
    return max(SMALLEST_WINDOW, int(length) // WINDOWS_A_TRACE)


def group_confidences(confidences: ArrayLike, window: int) -> NDArray[np.float64]:
    """Means over every `window` tokens in a row; of a shorter trace, the mean of it all."""
    at_least(1, window=window)
    values = np.asarray(confidences, np.float64)
    width = max(1, min(window, len(values)))
    sums = np.concatenate((NOTHING, values.cumsum()))
    groups: NDArray[np.float64] = (sums[width:] - sums[:-width]) / width
    return groups


def trace_confidence(confidences: ArrayLike, summary: Summary, window: int) -> float:
    """One number for a trace: the mean of it all, that of its last window ("tail"), that of the
    least tenth of its windows ("bottom"), or its lowest window. 0 for an empty trace."""
    values = np.asarray(confidences, np.float64)
    groups = group_confidences(values, window)
    if not len(groups):
        return 0.0
    if summary == "mean":
        return float(values.mean())
    if summary == "tail":
        return float(values[-window:].mean())
    if summary == "lowest":
        return float(groups.min())
    num_lowest = math.ceil(BOTTOM_SHARE * len(groups))
    return float(np.sort(groups)[:num_lowest].mean())


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
        at_least(1, window=self.window, top_k=self.top_k)

    def __call__(self, branches: Sequence[Branch]) -> list[float]:
        return [self.of(token_confidences(branch, self.top_k)) for branch in branches]

    def of(self, confidences: NDArray[np.float64]) -> float:
        window = self.window or relative_window(len(confidences))
        return trace_confidence(confidences, self.summary, window)
