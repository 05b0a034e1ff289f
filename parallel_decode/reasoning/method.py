"""`Method`: a named way to answer a question."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from parallel_decode.engine import Drafter, Engine, Steps
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.speculation import NoRoomToMeasure, speculate


@dataclass(frozen=True)
class Card:
    """What `parallel-decode methods` says of a method; its defaults are those of its fields.

    Attributes:
        family: of the survey, such as "self-consistency".
        paper: authors and year, or the short title.
        primitives: operations that it yields.
    """

    name: str
    family: str
    paper: str
    primitives: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One composition Π(Q) = (A ∘ P_M ∘ D)(Q). Subclasses are frozen dataclasses with a `card`.

    Args:
        speculation: what guesses ahead of the branches, as `speculate` takes it; "auto" for
            "suffix" where it may pay, on the CPU backend; None for nothing. It changes the time,
            never the result, and it stays with the engine. An engine that has a speculator keeps
            that one.
    """

    card: ClassVar[Card]
    speculation: str | Engine | Drafter | None = None

    def __post_init__(self) -> None:
        self.pipeline()  # bad parameters are found now, by the checks of its parts

    @abstractmethod
    def pipeline(self) -> Pipeline: ...

    def program(self, question: Question) -> Steps:
        return self.pipeline().program(question)

    def prepare(self, engine: Engine) -> None:
        """The engine calls it before it runs the method for some questions."""
        if self.speculation is None or engine.speculator is not None:
            return
        if self.speculation != "auto":
            speculate(engine, self.speculation)
        elif engine.placement.backend == "cpu":
            with contextlib.suppress(NoRoomToMeasure):
                speculate(engine, "suffix")
