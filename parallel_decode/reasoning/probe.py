"""`Probe`: what a branch would say if it were asked now."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prune
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Probe:
    """Forks branches and asks the forks; the branches themselves do not notice.

    Args:
        text: what the forks are told. An end of sequence before it is left out.
        params: how they answer; None where only what follows the text is looked at.
    """

    text: str
    params: SamplingParams | None = None

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("the text of a probe must not be empty")

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        """One fork a branch, to be pruned by the caller; None where its context has no room for the
        text, or the fork failed."""
        families = yield [
            Fork(branch, at=branch.num_tokens - (branch.finish_reason == "eos"))
            for branch in branches
        ]
        kids = [kid for [kid] in families]
        asked = [Extend([kid], self.params, self.text) for kid in kids]
        try:
            yield asked
        except ValueError:
            unasked = [kid for kid, op in zip(kids, asked, strict=True) if op.error is not None]
            yield Prune(unasked)
        return [kid if kid.status in ("live", "finished") else None for kid in kids]
