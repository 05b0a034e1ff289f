"""Measures of samples: accuracy, selection, diversity, collapse, confidence, coverage."""

from parallel_decode.reasoning.metrics.accuracy import (
    maj_at_k,
    oracle_gap,
    pass_at_k,
    selection_efficiency,
)
from parallel_decode.reasoning.metrics.aggregation_collapse import (
    AggregationCollapse,
    Synthesis,
    aggregation_collapse,
)
from parallel_decode.reasoning.metrics.bootstrap import paired_bootstrap
from parallel_decode.reasoning.metrics.collapse import Collapse, path_collapse
from parallel_decode.reasoning.metrics.coverage import CoverageLaw
from parallel_decode.reasoning.metrics.discrimination import auroc, within_question_discrimination
from parallel_decode.reasoning.metrics.diversity import (
    answer_entropy,
    distinct_answers,
    effective_sample_size,
    first_divergence,
    mean_cosine,
    mean_edit_distance,
    pairwise_agreement,
    prefix_overlap,
)
from parallel_decode.reasoning.metrics.edit_distance import (
    edit_distances,
    normalised_edit_distances,
)
from parallel_decode.reasoning.metrics.selection import Selection, selection

__all__ = [
    "AggregationCollapse",
    "Collapse",
    "CoverageLaw",
    "Selection",
    "Synthesis",
    "aggregation_collapse",
    "answer_entropy",
    "auroc",
    "distinct_answers",
    "edit_distances",
    "effective_sample_size",
    "first_divergence",
    "maj_at_k",
    "mean_cosine",
    "mean_edit_distance",
    "normalised_edit_distances",
    "oracle_gap",
    "paired_bootstrap",
    "pairwise_agreement",
    "pass_at_k",
    "path_collapse",
    "prefix_overlap",
    "selection",
    "selection_efficiency",
    "within_question_discrimination",
]
