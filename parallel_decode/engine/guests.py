"""Programs that were delegated to other engines."""

from typing import Any

from parallel_decode.engine.operation import Delegate, Operation
from parallel_decode.engine.program import Program


class Guests:
    """Each delegated program with the program that waits for it."""

    def __init__(self) -> None:
        self._guests: dict[int, tuple[Program, Delegate, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._guests)

    def __contains__(self, operation: Operation) -> bool:
        return id(operation) in self._guests

    def add(self, host: Program, operation: Delegate) -> None:
        if operation.engine.in_step:
            raise ValueError(
                "Delegate: the engine waits for this program: `yield from` the steps themselves"
            )
        guest = operation.engine.submit(operation.steps, seed=host.seed)
        self._guests[id(operation)] = host, operation, guest

    @property
    def idle(self) -> bool:
        """Whether all their engines wait for calls outside."""
        return all(operation.engine.idle for _, operation, _ in self._all())

    def wait(self) -> None:
        """Sleeps, for a moment at the most, until one of them may go on."""
        for _, operation, _ in self._all()[:1]:
            operation.engine.step()

    def step(self) -> None:
        """One step of each engine that has guests; those that are done give their results."""
        engines = {id(operation.engine): operation.engine for _, operation, _ in self._all()}
        for engine in engines.values():
            engine.step(wait=False)
        for host, operation, guest in self._all():
            if guest.status == "done":
                del self._guests[id(operation)]
                used = guest.usage
                host.usage.delegated_tokens += used.computed_tokens + used.delegated_tokens
                operation.result, operation.error, operation.done = guest.result, guest.error, True

    def stop(self, host: Program, reason: str) -> None:
        """Ends the sampling of a program's guests; they conclude with what they have."""
        for other, _, guest in self._all():
            if other is host:
                guest.stop_reason = guest.stop_reason or reason

    def drop(self, host: Program) -> None:
        """The program has ended: its guests do, too."""
        for other, operation, guest in self._all():
            if other is host:
                del self._guests[id(operation)]
                operation.engine.drop(guest)

    def _all(self) -> list[tuple[Program, Delegate, Any]]:
        return list(self._guests.values())
