"""A model that says what a script says: sampling under a grammar of one text, token by token.

Between its parts the script may be told something, which begins and ends with a bar; the model
never writes a bar by itself.
"""

from __future__ import annotations

from parallel_decode import Engine, Grammar, SamplingParams
from parallel_decode.engine import SimulatedExecutor
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine

BAR = "|"
ALPHABET = TEXT + '<>/{}",$[]_`?()\'ABCDEFGHIJKLMNOPQRSTUVWXYZ;!~' + BAR
TOLD = r"(?:\|[^|]*\|)*"
SPECIAL = set(r".^$*+?()[]{}|\\")


def escaped(text: str) -> str:
    return "".join("\\" + c if c in SPECIAL else c for c in text)


def script(*parts: str, engine: Engine, **settings) -> SamplingParams:
    """Draws the parts one behind the other; behind each it may be told something."""
    expression = "".join(escaped(part) + TOLD for part in parts)
    [bar] = engine.tokenizer.encode(BAR, add_bos=False)
    base = {"temperature": 0, "max_tokens": 400, "logit_bias": {bar: -1e4}}
    return SamplingParams(grammar=Grammar.regex(expression), **{**base, **settings})


def script_engine(seconds_per_step: float = 0.0, **options) -> tuple[Engine, SimulatedExecutor]:
    """An engine on a simulated clock, on which a tool takes its argument "seconds"."""
    engine = tiny_engine(tiny_checkpoint(text=ALPHABET, max_position_embeddings=2048), **options)
    clock = SimulatedExecutor(lambda call, args: call.arguments["seconds"], seconds_per_step)
    engine.executor = clock
    if seconds_per_step:
        engine.observe(clock.stepped)
    return engine, clock


def wait(seconds, **needs):
    """Gives its seconds back."""
    return seconds
