"""`Action`: a named way to make children of a node."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Extend
from parallel_decode.reasoning.search.growth import Growth


@dataclass(frozen=True)
class Action:
    """Appends a lead, then draws a step or all that is left.

    Args:
        name: of the nodes that it makes.
        lead: text put in front, such as "Sub-question:". A model must have been trained on it, or
            be large enough to follow it.
        whole: draw to the end of the solution, not just of a step.
    """

    name: str
    lead: str = ""
    whole: bool = False

    def operation(self, growth: Growth, branches: Sequence[Branch]) -> Extend:
        params = growth.whole_params if self.whole else growth.step_params
        return Extend(branches, params, self.lead)

    def ends(self, growth: Growth, branch: Branch) -> bool:
        """Whether a branch that it made has no more to come."""
        return not growth.was_cut(branch) if self.whole else growth.has_ended(branch)

    def max_tokens(self, growth: Growth) -> int:
        """What it adds to a branch at the most; a byte of the lead may be a token."""
        params = growth.whole_params if self.whole else growth.step_params
        return len(self.lead.encode()) + params.max_tokens


STEP = Action("step")
WHOLE = Action("whole", whole=True)

RSTAR_ACTIONS = (
    STEP,
    WHOLE,
    Action("sub-question", "Sub-question: "),
    Action("re-answer", "Let me answer this sub-question again: "),
    Action("rephrase", "Let me rephrase the question: "),
)
"""The five actions of rStar (Qi et al., 2024), with leads of our own wording."""
