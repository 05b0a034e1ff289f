"""A tiny model that says what a script says, on a simulated clock."""

from __future__ import annotations

from parallel_decode import Engine
from parallel_decode.engine import SimulatedExecutor
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine

ALPHABET = TEXT + "<>/{}\",$[]_`?()'ABCDEFGHIJKLMNOPQRSTUVWXYZ;!~|"


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
