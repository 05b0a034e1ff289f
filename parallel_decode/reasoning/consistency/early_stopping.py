"""Early-stopping self-consistency: windows of samples until one is unanimous (Li et al., 2024)."""

from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.consistency.batches import Batches
from parallel_decode.reasoning.consistency.stopping import unanimous_window
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import root


@dataclass(frozen=True)
class EarlyStopping(Method):
    """D opens the question, P samples windows until all answers of one are the same, A lets the
    answers of all windows vote.

    Args:
        n: samples at the most.
        window: samples that are drawn together and must agree.
        params: how samples are drawn.
        extract: text of a branch to its answer; a window in which one has none is not unanimous.
    """

    card: ClassVar = Card(
        "early-stopping", "self-consistency", "Li et al., 2024", ("prefill", "fork", "extend")
    )

    n: int = 40
    window: int = 5
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        enough = unanimous_window(self.window)
        samples = Batches(self.window, self.n, self.params, self.extract, enough)
        return Pipeline(root, samples, Select(self.extract))
