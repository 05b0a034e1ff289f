"""Token beam search: beams are branches, and reordering them is forking and pruning."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel_decode.engine.branch import GIVEN, Branch
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.operation import Broadcast, Extend, Fork, Prefill, Prune
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
        # Of a beam's 2 * width best tokens at most `width` end it.
        look = SamplingParams(temperature=0.0, max_tokens=1, logprobs=2 * self.width)
        root = yield Prefill(question)
        beams: list[tuple[float, Branch]] = [(0.0, root)]
        finished: list[tuple[float, Branch]] = []
        for length in range(1, self.max_tokens + 1):
            # A child draws one token to show the logits; the beam itself stays as it is.
            probes = [p for [p] in (yield [Fork(beam) for _, beam in beams])]
            yield Extend(probes, look)
            yield Prune(probes)
            if any(probe.finish_reason in ("aborted", "budget") for probe in probes):
                break
            candidates = sorted(
                (
                    (total + logprob, index, token)
                    for index, (total, _) in enumerate(beams)
                    for top in [(probes[index].records or [GIVEN])[-1].top]
                    if top is not None
                    for token, logprob in zip(top.tokens, top.logprobs, strict=True)
                ),
                key=lambda c: (-c[0], c[1], c[2]),
            )
            chosen: list[tuple[float, int, int]] = []
            num_live = 0
            for candidate in candidates:
                if num_live == self.width:
                    break
                chosen.append(candidate)
                num_live += candidate[2] not in self.eos_ids
            forks = [Fork(beams[index][1]) for _, index, _ in chosen]
            children = [child for [child] in (yield forks)]
            yield [
                Broadcast([child], [token])
                for child, (_, _, token) in zip(children, chosen, strict=True)
            ]
            yield Prune([beam for _, beam in beams])
            beams = []
            for child, (total, _, token) in zip(children, chosen, strict=True):
                if token in self.eos_ids:
                    child.status, child.finish_reason = "finished", "eos"
                    finished.append((self._score(total, length), child))
                else:
                    beams.append((total, child))
            finished.sort(key=lambda entry: -entry[0])
            yield Prune([branch for _, branch in finished[self.width :]])
            del finished[self.width :]
            if not beams or (
                len(finished) == self.width
                and finished[-1][0] >= self._score(max(total for total, _ in beams), length)
            ):
                break
        for total, beam in beams:
            finished.append((self._score(total, beam.num_tokens - root.num_tokens), beam))
        finished.sort(key=lambda entry: -entry[0])
        best = finished[: self.width]
        return BeamResult(
            [branch for _, branch in best],
            [score for score, _ in best],
            [branch.text for _, branch in best],
        )

    def _score(self, total: float, length: int) -> float:
        return total / max(1, length) ** self.length_penalty
