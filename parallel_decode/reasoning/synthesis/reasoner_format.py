"""The formats of a reader of candidates that `examples/train_formats.py` teaches the reasoner."""

from parallel_decode.engine import Engine, SamplingParams
from parallel_decode.reasoning.consistency.universal_self_consistency import ReadingPrompt
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.ranking.generative_verifier import GenerativeVerifier
from parallel_decode.reasoning.template import Template

CANDIDATES = "<candidates>"
"""Follows a question whose candidates are shown."""
CANDIDATE = "<candidate>"
"""Begins a candidate, with its number and a line end."""
SYNTHESIS = "<synthesis>"
"""Comes behind the last candidate; the reader writes the steps and the answer."""
CHOOSE = "<choose>"
"""Comes behind the last candidate; the reader writes the number of the most consistent one."""
CHECK = "<check>"
"""Comes behind a solution; the reader writes one of its own."""
VERIFY = "<verify>"
"""Comes behind both; the reader writes whether the given one is `RIGHT` or `WRONG`."""
RIGHT = "<right>"
WRONG = "<wrong>"
TAGS = (CANDIDATES, CANDIDATE, SYNTHESIS, CHOOSE, CHECK, VERIFY, RIGHT, WRONG)
MOST_CANDIDATES = 4
"""That the reader was trained on."""


def reasoner_quotation() -> Quotation:
    """How a synthesiser is shown candidates."""
    return Quotation(
        Template(CANDIDATES + "{texts}" + SYNTHESIS), Template(CANDIDATE + "{number}\n{text}\n")
    )


def reasoner_debate(peers: int) -> Quotation:
    """How an agent of a debate is shown so many others' answers, and its own as the last one."""
    own = CANDIDATE + f"{peers + 1}\n{{own}}\n"
    return Quotation(Template(CANDIDATES + "{texts}" + own + SYNTHESIS), reasoner_quotation().quote)


def reasoner_reading() -> ReadingPrompt:
    """How universal self-consistency shows them. The reader was taught to name the first candidate
    of the most frequent answer, but has not learnt to count: it nearly always says 1."""
    return ReadingPrompt(CANDIDATES, CANDIDATE + "{number}\n{text}\n", CHOOSE)


def reasoner_verdict(engine: Engine | None = None) -> GenerativeVerifier:
    """Scores solutions, each behind one of the reader's own.

    engine: with the reader, where it is not the one that wrote them.
    """
    return GenerativeVerifier(
        Template(VERIFY),
        RIGHT,
        WRONG,
        1,
        Template(CHECK),
        SamplingParams(temperature=0.0, max_tokens=400),
        engine,
    )
