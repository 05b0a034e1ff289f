"""`piece`: what a branch writes up to its next stop, while calls go on."""

from parallel_decode.engine import Branch, Broadcast, Extend, Rollback, SamplingParams, Steps
from parallel_decode.reasoning.tools.dispatcher import Dispatcher


def piece(branch: Branch, params: SamplingParams, told: str, calls: Dispatcher) -> Steps:
    """Tells the branch a text and lets it write -> what it wrote, without that; None where it can't
    go on, or has no room for the text.

    An end of sequence before the text is taken back.
    """
    stopped = branch.finish_reason in ("budget", "aborted")
    if branch.status not in ("live", "finished") or stopped:
        return None
    if branch.status == "finished":
        yield Rollback(branch, branch.num_tokens - 1)
    if told:
        try:
            yield Broadcast([branch], told)
        except ValueError:
            return None
    before = branch.num_sampled
    yield from calls.until(Extend([branch], params))
    return branch.tail(branch.num_sampled - before)


def conclude(branch: Branch) -> Steps:
    """Behind a call that was stopped: where the run was, the branch gets that as its reason."""
    if branch.status == "live" and branch.finish_reason != "aborted":
        yield Extend([branch], SamplingParams(max_tokens=1))
