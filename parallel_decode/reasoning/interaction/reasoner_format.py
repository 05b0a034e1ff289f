"""The formats of workers and of peers that `examples/train_formats.py` teaches the reasoner."""

from dataclasses import replace

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.interaction.group_think import GroupThink
from parallel_decode.reasoning.interaction.leap import LeaP
from parallel_decode.reasoning.template import Template

TEAM = "<team>"
"""Follows a question that workers split between them."""
WORKER = "<worker>"
"""Begins the text of a worker, with its number and a line end."""
WORKER_SPAN = 96
"""Positions of a worker."""
PEERS = "<peers>"
"""Follows a question on which paths tell each other how far they are."""
SHARE = "<share>"
"""A path is given it, and writes the value of its last line."""
HEARD = "<heard>"
"""Comes before what the others wrote."""
AGREE = "<agree>"
"""Comes behind it; the path writes which value it goes on with."""
TAGS = (TEAM, WORKER, PEERS, SHARE, HEARD, AGREE)
STEP_TOKENS = 8
"""A step such as `b=7*3=21` with its line end."""
VALUE_TOKENS = 4
"""A value such as `b=21` with its line end."""


def reasoner_team(
    size: int, params: SamplingParams, extract: Extractor, *, visible: bool = True
) -> GroupThink:
    """Workers on a question with `TEAM`; each works on a sub-chain and reads the ends of the others
    off them.

    Args:
        size: as many workers as sub-chains, 2 to 4.
        params: `max_tokens` must leave room for what a worker begins with, see `WORKER_SPAN`.
        visible: False to let nobody see anybody: a control.
    """
    return GroupThink(
        names=[str(number) for number in range(1, size + 1)],
        span=WORKER_SPAN,
        lead=Template(WORKER + "{name}\n"),
        visible=visible,
        params=params,
        extract=extract,
    )


def reasoner_peers(
    n: int, steps: int, turns: int, params: SamplingParams, extract: Extractor
) -> LeaP:
    """Paths on a question with `PEERS`, each of which hears all the others.

    Args:
        n: paths, 2 to 4.
        steps: of a turn.
        turns: at the most.
        params: of a path; `max_tokens` is set to what the steps of a turn take.
    """
    return LeaP(
        n=n,
        turns=turns,
        peers=n - 1,
        ask=Template(SHARE),
        summary=replace(params, max_tokens=VALUE_TOKENS, stop="\n"),
        quote=Template("{text}\n"),
        comment=Template(HEARD + "{summaries}" + AGREE),
        params=replace(params, max_tokens=VALUE_TOKENS + steps * STEP_TOKENS),
        extract=extract,
    )
