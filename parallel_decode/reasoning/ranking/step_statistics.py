"""Statistics of a branch's steps, from the records that sampling leaves anyway."""

import math
from collections.abc import Sequence

from parallel_decode.engine import Branch

STATISTICS = (
    "logprob",  # of the step, summed over its tokens
    "lowest_logprob",
    "entropy",  # mean over its tokens, in nats
    "highest_entropy",
    "path_logprob",  # of all steps so far
    "path_mean_logprob",
    "sum_of_lowest",  # of all steps so far
    "path_lowest_logprob",
    "num_tokens",
    "number",  # of the step, from one
)


def step_statistics(branch: Branch, ends: Sequence[int]) -> list[list[float]]:
    """The `STATISTICS` of each step.

    Args:
        ends: numbers of the tokens that end a step, ascending, the last one that of the last token.

    Raises:
        ValueError: a token of the output was not sampled: nothing is recorded of it.
    """
    records = branch.records
    rows, begin, total, lows = [], 0, 0.0, []
    for number, end in enumerate(ends, 1):
        stop = max(begin, end + 1 - branch.prompt_length)
        step = records[begin:stop]
        logprobs = [record.logprob for record in step] or [0.0]
        entropies = [record.entropy for record in step] or [0.0]
        total += math.fsum(logprobs)
        lows.append(min(logprobs))
        row = [
            math.fsum(logprobs),
            lows[-1],
            math.fsum(entropies) / len(entropies),
            max(entropies),
            total,
            total / max(1, stop),
            math.fsum(lows),
            min(lows),
            float(len(step)),
            float(number),
        ]
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{branch!r} has tokens that were not sampled: no statistics of them")
        rows.append(row)
        begin = stop
    return rows
