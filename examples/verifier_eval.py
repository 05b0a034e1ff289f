"""What scores are worth on a pool of traces: discrimination, and choices among 16 candidates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from verifier_data import Trace

from parallel_decode.model import Classifier
from parallel_decode.reasoning.metrics import (
    auroc,
    paired_bootstrap,
    within_question_discrimination,
)
from parallel_decode.reasoning.ranking.reduction import REDUCTIONS
from parallel_decode.reasoning.ranking.step_statistics import STATISTICS
from parallel_decode.reasoning.vote import tally
from parallel_decode.reasoning.weighting import Weighting, best_only, by_score

Pool = list[list[Trace]]
Score = Callable[[Trace], float]


@dataclass(frozen=True)
class Row:
    """One way to choose: accuracy, its difference to the majority with the 95 % interval, and the
    scores' discrimination within questions."""

    name: str
    auroc: float | None
    best: float
    best_gain: tuple[float, float, float]
    weighted: float
    weighted_gain: tuple[float, float, float]


def pool_of(traces: Sequence[Trace]) -> Pool:
    """The traces by question."""
    questions: dict[int, list[Trace]] = {}
    for trace in traces:
        questions.setdefault(trace.question, []).append(trace)
    return list(questions.values())


def chosen(question: Sequence[Trace], score: Score, weigh: Weighting) -> float:
    """1 where the winner of the vote is right; the same functions as in `Select`."""
    voting = [trace for trace in question if trace.answer is not None]
    if not voting:
        return 0.0
    votes = tally([t.answer for t in voting], weigh([score(t) for t in voting]))
    return float(next(t.right for t in voting if t.answer == votes[0][0]))


def majority(pool: Pool) -> list[float]:
    return [chosen(question, lambda trace: 1.0, by_score) for question in pool]


def row(name: str, pool: Pool, score: Score, against: Sequence[float]) -> Row:
    best = [chosen(question, score, best_only) for question in pool]
    weighted = [chosen(question, score, by_score) for question in pool]
    scores = [[score(trace) for trace in question] for question in pool]
    right = [[trace.right for trace in question] for question in pool]
    return Row(
        name,
        within_question_discrimination(scores, right),
        sum(best) / len(best),
        paired_bootstrap(against, best),
        sum(weighted) / len(weighted),
        paired_bootstrap(against, weighted),
    )


def scores_by(head: Classifier, label: str, reduce: str) -> Score:
    """The score of a trace by one output of the heads, as `Verifier` gives it."""

    def score(trace: Trace) -> float:
        return REDUCTIONS[reduce](head.scores(trace.inputs, label).tolist())

    return score


def path_likelihood(trace: Trace) -> float:
    """exp of the summed log-probability, the model's own belief in the whole path."""
    column = STATISTICS.index("path_logprob") - len(STATISTICS)
    return math.exp(float(trace.inputs[-1, column]))


def likelihood(trace: Trace) -> float:
    return math.exp(trace.mean_logprob)


def shuffled(score: Score, pool: Pool, seed: int) -> Score:
    """The control: the scores of each question, dealt to its traces at random."""
    rng = Random(seed)
    dealt: dict[int, float] = {}
    for question in pool:
        scores = [score(trace) for trace in question]
        rng.shuffle(scores)
        dealt |= {id(trace): value for trace, value in zip(question, scores, strict=True)}
    return lambda trace: dealt[id(trace)]


def step_auroc(head: Classifier, pool: Pool) -> dict[str, float | None]:
    """AUROC of step scores against the exact labels, over all steps, by the depth of the step."""
    traces = [trace for question in pool for trace in question if trace.steps]
    scored = [(head.scores(trace.inputs, "process").tolist(), trace.steps) for trace in traces]
    groups: dict[str, tuple[list[float], list[bool]]] = {}
    for scores, steps in scored:
        for depth, (score, step) in enumerate(zip(scores, steps, strict=True), 1):
            low = 4 * ((depth - 1) // 4)
            for name in ("all", f"{low + 1} to {low + 4}"):
                group = groups.setdefault(name, ([], []))
                group[0].append(score)
                group[1].append(step > 0.5)
    return {name: auroc(*groups[name]) for name in sorted(groups, key=_first_number)}


def _first_number(name: str) -> int:
    return int(name.split()[0]) if name[0].isdigit() else 0


def best_reduction(head: Classifier, pool: Pool) -> str:
    """The reduction whose weighted votes are right most often; the first of equals."""

    def accuracy(reduce: str) -> float:
        score = scores_by(head, "process", reduce)
        return sum(chosen(question, score, by_score) for question in pool)

    return max(REDUCTIONS, key=accuracy)


def as_classifier(layers: torch.nn.Sequential, labels: tuple[str, ...]) -> Classifier:
    weights = [(layer.weight.data, layer.bias.data) for layer in (layers[0], layers[2])]
    return Classifier(weights, labels, "multi_label_classification", True)
