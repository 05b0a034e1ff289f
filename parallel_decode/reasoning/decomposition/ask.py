"""`ask`: tells a branch something and lets it answer, in place."""

from parallel_decode.engine import Branch, Extend, Rollback, SamplingParams, Steps


def ask(branch: Branch, text: str, params: SamplingParams) -> Steps:
    """-> what the branch says; None where it can't go on or has no room for the text.

    An end of sequence before the text is taken back.
    """
    if branch.status not in ("live", "finished"):
        return None
    if branch.finish_reason in ("budget", "aborted"):
        return None
    if branch.finish_reason == "eos":
        yield Rollback(branch, branch.num_tokens - 1)
    before = len(branch.text)
    try:
        yield Extend([branch], params, text)
    except ValueError:
        return None
    return branch.text[before + len(text) :]
