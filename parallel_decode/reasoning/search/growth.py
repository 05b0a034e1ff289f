"""`Growth`: how partial solutions grow, a step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parallel_decode.engine import Branch, Extend, Fork, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least

CUT_SHORT = ("aborted", "budget")


@dataclass(frozen=True)
class Growth:
    """Steps that end with a string, such as a line end.

    Args:
        step: string that ends a step.
        max_steps: steps of a branch at the most.
        params: how steps are drawn; max_tokens is that of one step, which goes on as the next one.
    """

    step: str = "\n"
    max_steps: int = 40
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=64))

    def __post_init__(self) -> None:
        at_least(1, max_steps=self.max_steps)
        if not self.step:
            raise ValueError("step must not be empty")

    @property
    def step_params(self) -> SamplingParams:
        """To the end of a step."""
        return replace(self.params, stop=(self.step, *self.params.stop))

    @property
    def whole_params(self) -> SamplingParams:
        """To the end of the solution, over as many tokens as all steps may have."""
        return replace(self.params, max_tokens=self.params.max_tokens * self.max_steps)

    def expand(self, branches: Sequence[Branch], counts: Sequence[int]) -> Steps:
        """counts[i] children of branch i, each a step longer, all in one batch -> one list of
        children a branch. Children that failed are among them."""
        parents = [branch for branch, n in zip(branches, counts, strict=True) if n > 0]
        families = yield [
            Fork(branch, n) for branch, n in zip(branches, counts, strict=True) if n > 0
        ]
        yield from self.extend([kid for family in families for kid in family])
        grown = dict(zip(map(id, parents), families, strict=True))
        return [grown.get(id(branch), []) for branch in branches]

    def extend(self, branches: Sequence[Branch]) -> Steps:
        """One step more of each -> the same branches."""
        return (yield Extend(branches, self.step_params))

    def has_ended(self, branch: Branch) -> bool:
        """Whether it came to its end, not just to that of a step."""
        if branch.finish_reason == "length":
            # Short of max_tokens it is the context that is full.
            return len(branch.own_tokens) < self.params.max_tokens
        after_step = branch.finish_reason == "stop" and branch.stop_string == self.step
        return not after_step and not self.was_cut(branch)

    def was_cut(self, branch: Branch) -> bool:
        """Whether the budget or somebody stopped it: the search is over then."""
        return branch.finish_reason in CUT_SHORT
