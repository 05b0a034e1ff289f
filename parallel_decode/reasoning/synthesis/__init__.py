"""Generative synthesis: a model reads candidates and writes the solution."""

from parallel_decode.reasoning.synthesis.explorer_synthesiser import (
    A2R,
    SSA,
    GenerativeSelfAggregation,
)
from parallel_decode.reasoning.synthesis.pacore import PaCoRe, last_paragraph
from parallel_decode.reasoning.synthesis.reasoner_format import (
    reasoner_debate,
    reasoner_quotation,
    reasoner_reading,
    reasoner_verdict,
)
from parallel_decode.reasoning.synthesis.recursive import RecursiveSelfAggregation

__all__ = [
    "A2R",
    "SSA",
    "GenerativeSelfAggregation",
    "PaCoRe",
    "RecursiveSelfAggregation",
    "last_paragraph",
    "reasoner_debate",
    "reasoner_quotation",
    "reasoner_reading",
    "reasoner_verdict",
]
