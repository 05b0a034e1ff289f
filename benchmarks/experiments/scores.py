"""The scores that every trace of a pool gets: confidences, and what verifiers say of its steps."""

from __future__ import annotations

from statistics import fmean

from benchmarks.experiments.selectors import Score
from parallel_decode.reasoning import Verifier
from parallel_decode.reasoning.consistency.confidence import TraceConfidence
from parallel_decode.reasoning.ranking.reduction import REDUCTIONS
from parallel_decode.reasoning.scorer import Scorer, likelihood

TOP_K = 5  # a vocabulary of some hundred tokens has no 20 likely ones
SCORERS: dict[str, Scorer] = {
    "likelihood": likelihood,
    "lowest_window": TraceConfidence("lowest", top_k=TOP_K),
    "self_certainty": lambda branches: [
        fmean(r.self_certainty for r in branch.records if r.sampled) for branch in branches
    ],
}


def open_verifiers(source: str) -> dict[str, Verifier]:
    """By the kind of their scores; none where `source` is empty.

    Heads on the trunk hold both kinds. A reward model is what its files say.

    Raises:
        ValueError: the files are damaged or hold no verifier.
    """
    if not source:
        return {}
    kinds = ("outcome", "process")
    verifiers = {kind: Verifier.from_pretrained(source, kind) for kind in kinds}
    if any(verifier.engine is not None for verifier in verifiers.values()):
        alone = Verifier.from_pretrained(source)
        return {"process" if alone.step else "outcome": alone}
    return verifiers


def step_score(verifier: str, reduce: str) -> Score:
    """The scores of a trace's steps by a verifier, as one."""
    reduction = REDUCTIONS[reduce]
    return lambda trace: reduction(trace.steps[verifier])


def verifier_scores(verifiers: set[str]) -> dict[str, Score]:
    """Every way to make one score of what the verifiers of a pool said."""
    scores = {}
    if "outcome" in verifiers:
        scores["outcome"] = step_score("outcome", "last")
    if "process" in verifiers:
        scores |= {f"process, {reduce}": step_score("process", reduce) for reduce in REDUCTIONS}
    return scores
