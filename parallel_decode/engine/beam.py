"""Token beam search: beams are branches, and reordering them is forking and pruning."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.operation import Extend, Fork, Prefill, Prune
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams


@dataclass
class BeamResult:
    """Finished beams, best first, by score = log-probability / length^length_penalty."""

    branches: list[Branch]
    scores: list[float]
    texts: list[str]
    usage: Usage = field(default_factory=Usage)
    interrupted: bool = False

    @property
    def answer(self) -> str:
        return self.texts[0]


@dataclass(frozen=True)
class TokenBeam:
    """Beam search over tokens as a method for `Engine.solve`.

    Args:
        width: live beams.
        max_tokens: length at which what is live counts as finished.
        length_penalty: exponent of the length (Wu et al., 2016, without the constant).
        eos_ids: tokens that finish a beam.
    """

    width: int
    max_tokens: int
    eos_ids: tuple[int, ...]
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.max_tokens < 1:
            raise ValueError(
                f"width and max_tokens must be at least 1, got {self.width}, {self.max_tokens}"
            )

    def program(self, question: str | Sequence[int]) -> Steps:
        look = SamplingParams(temperature=0.0, max_tokens=1, logprobs=2 * self.width)
        root = yield Prefill(question)
        beams: list[tuple[Branch, float]] = [(root, 0.0)]
        finished: list[tuple[float, Branch]] = []
        for length in range(1, self.max_tokens + 1):
            # A greedy step shows each beam's 2 * width best tokens, of which at most width end it.
            yield Extend([beam for beam, _ in beams], look)
            if any(beam.finish_reason in ("aborted", "budget") for beam, _ in beams):
                break
            candidates = sorted(
                (
                    (total + logprob, index, token)
                    for index, (beam, total) in enumerate(beams)
                    for token, logprob in beam.records[-1].top or []
                ),
                key=lambda c: (-c[0], c[1], c[2]),
            )
            chosen: list[tuple[float, int, int]] = []
            for total, index, token in candidates:
                if token in self.eos_ids:
                    if len(chosen) < self.width:
                        finished.append((self._score(total, length), beams[index][0]))
                elif len(chosen) < self.width:
                    chosen.append((total, index, token))
            next_beams: list[tuple[Branch, float]] = []
            for total, index, token in chosen:
                parent = beams[index][0]
                [child] = yield Fork(parent, 1, at=parent.num_tokens - 1)
                yield Extend([child], tokens=[token])
                next_beams.append((child, total))
            done = {id(branch) for _, branch in finished}
            yield Prune([beam for beam, _ in beams if id(beam) not in done])
            beams = next_beams
            best = max((score for score, _ in finished), default=float("-inf"))
            if not beams or (
                len(finished) >= self.width and best >= self._score(beams[0][1], length)
            ):
                break
        finished += [(self._score(total, self.max_tokens), beam) for beam, total in beams]
        finished.sort(key=lambda entry: -entry[0])
        best_branches = finished[: self.width]
        return BeamResult(
            [branch for _, branch in best_branches],
            [score for score, _ in best_branches],
            [branch.text for _, branch in best_branches],
        )

    def _score(self, total: float, length: int) -> float:
        return total / length**self.length_penalty
