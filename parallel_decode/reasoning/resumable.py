"""`Resumable`: a method whose searches can be stored on the way and taken up again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallel_decode.engine import (
    Engine,
    Extend,
    FirstOf,
    Fork,
    Join,
    Operation,
    Prefill,
    Prune,
    Recall,
    Release,
    Rollback,
    Score,
    Seed,
    Steps,
)
from parallel_decode.reasoning.checkpoint import (
    Checkpoint,
    history,
    plain,
    require_same,
    stored,
    value_of,
)
from parallel_decode.reasoning.method import Method
from parallel_decode.reasoning.pipeline import Question

REPEATED = (Prefill, Fork, Join, Prune, Release, Rollback, Seed)
"""Operations that a resumed search carries out again; what others gave is in the checkpoint."""
NUM_TOKENS_SAID = 8
TOLERANCE = 1e-3
"""Of log-probabilities, in nats: on a GPU they depend a little on the batch."""


@dataclass
class Resumable:
    """A method whose searches can be stored on the way and taken up again: for `Engine.solve`.

    A resumed search computes the keys of its inner nodes again and draws nothing again. Its result
    is that of a run without a break. In its usage, tokens that were drawn and probes that were made
    before count, too; computed tokens, steps and time are those of this run alone.

    Args:
        method: what to do. Its scorers and extractors must give the same for the same branches; of
            what the model told them by `Score` the old results are used.
        on_checkpoint: called with the checkpoint of a question whenever something was added to it;
            it is the same object each time. What it raises ends the question.
        resume: a checkpoint to go on from.

    Raises:
        ValueError: while it runs, where the checkpoint is of another model, method, question or
            seed, or where the method does what can't be stored: broadcasts, or callbacks on tokens.
    """

    method: Method
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None
    resume: Checkpoint | None = None
    _model: dict[str, Any] = field(default_factory=dict, init=False)

    def prepare(self, engine: Engine) -> None:
        """The engine calls it before it runs the method for some questions."""
        self.method.prepare(engine)
        self._model = {
            "name": engine.name,
            "config": plain(engine.config),
            "dtype": str(engine.placement.dtype),
            "kv_dtype": str(engine.placement.kv_dtype),
        }

    def program(self, question: Question) -> Steps:
        asked = question if isinstance(question, str) else [int(token) for token in question]
        checkpoint = Checkpoint(self._model, plain(self.method), asked)
        if self.resume is not None:
            for name in ("model", "method", "question"):
                require_same(name, getattr(self.resume, name), getattr(checkpoint, name))
            checkpoint = dataclasses.replace(self.resume, answers=list(self.resume.answers))
        recorder = _Recorder(self.method.program(question), checkpoint, self.on_checkpoint)
        return (yield from recorder.program())


class _Recorder:
    """Runs a program, first on the answers of a checkpoint, then on the engine's, which it adds."""

    def __init__(
        self, steps: Steps, checkpoint: Checkpoint, on_checkpoint: Callable[[Checkpoint], None]
    ) -> None:
        self._steps = steps
        self._checkpoint = checkpoint
        self._on_checkpoint = on_checkpoint
        self._begun: dict[int, tuple[Operation, list[int]]] = {}
        self._identified = False
        self._failed = False

    def program(self) -> Steps:
        old = iter(list(self._checkpoint.answers))
        try:
            request = next(self._steps)
            while True:
                operations = _operations(request)
                answers = next(old, None)
                if answers is not None:
                    yield from self._replay(answers, operations)
                else:
                    self._begin(operations)
                    try:
                        yield request
                    except Exception as error:
                        # The checkpoint stays in front of what failed.
                        self._failed = True
                        request = self._steps.throw(error)
                        continue
                    self._record(operations)
                if not self._identified:
                    yield from self._identify(operations)
                if answers is None and not self._failed:
                    self._on_checkpoint(self._checkpoint)
                request = self._steps.send(_result(request, operations))
        except StopIteration as stop:
            return stop.value
        finally:
            self._steps.close()

    def _begin(self, operations: Sequence[Operation]) -> None:
        """Remembers how long branches are before they grow."""
        for operation in operations:
            callback = isinstance(operation, Extend) and operation.on_token is not None
            if callback or not isinstance(operation, (*REPEATED, Extend, Score)):
                what = "on_token" if callback else type(operation).__name__
                raise ValueError(f"a search that uses {what} can't be stored")
            if isinstance(operation, Extend) and id(operation) not in self._begun:
                lengths = [branch.num_tokens for branch in operation.branches]
                self._begun[id(operation)] = (operation, lengths)
            elif not operation.done:
                self._begun.setdefault(id(operation), (operation, []))

    def _record(self, operations: Sequence[Operation]) -> None:
        answers: list[list[Any]] = []
        for number, operation in enumerate(operations):
            if operation.done and id(operation) in self._begun:
                _, lengths = self._begun.pop(id(operation))
                result = None if _is_repeated(operation) else stored(operation, lengths)
                answers.append([number, type(operation).__name__, _paths(operation), result])
        if not self._failed:
            self._checkpoint.answers.append(answers)

    def _replay(self, answers: Sequence[Sequence[Any]], operations: Sequence[Operation]) -> Steps:
        """Brings about what the operations gave in the earlier run."""
        for number, name, paths, _ in answers:
            found = None
            if number < len(operations):
                found = (type(operations[number]).__name__, _paths(operations[number]))
            if found != (name, paths):
                raise ValueError(
                    f"the checkpoint is of another search: {name} of {paths}, here {found}"
                )
        done = [(operations[number], result) for number, _, _, result in answers]
        yield [operation for operation, _ in done if _is_repeated(operation)]
        for operation, result in done:
            if isinstance(operation, Extend):
                histories = [history(row) for row in result]
                operation.result = yield Recall(operation.branches, histories, extend=operation)
            elif isinstance(operation, Score) and not _is_repeated(operation):
                yield Recall([], [], probes=len(operation.branches))
                operation.result = [value_of(row) for row in result]
            operation.done = True

    def _identify(self, operations: Sequence[Operation]) -> Steps:
        """Notes the seed and what the model says after the question, or compares them."""
        roots: list[Any] = [op.result for op in operations if isinstance(op, Prefill) and op.done]
        if not roots:
            return
        self._identified = True
        seed = yield Seed(roots[0])
        [row] = yield Score(roots[:1], distribution=True)
        checkpoint = self._checkpoint
        if checkpoint.seed is None:
            top = row.topk(min(NUM_TOKENS_SAID, len(row)))
            checkpoint.seed = seed
            checkpoint.says = [[int(i), float(p)] for p, i in zip(*top, strict=True)]
            return
        for token, logprob in checkpoint.says:
            now = float(row[int(token)])
            if not abs(now - logprob) <= TOLERANCE:
                raise ValueError(
                    "the checkpoint is of another model: after the question token"
                    f" {int(token)} had log-probability {logprob:.6f}, here {now:.6f}"
                )
        if seed != checkpoint.seed:
            raise ValueError("the checkpoint is of another seed: give the one of the first run")


def _operations(request: Any) -> list[Operation]:
    if isinstance(request, FirstOf):
        return list(request.operations)
    return list(request) if isinstance(request, list | tuple) else [request]


def _result(request: Any, operations: Sequence[Operation]) -> Any:
    """What the program gets for its request."""
    if isinstance(request, FirstOf):
        return [operation for operation in operations if operation.done]
    results = [operation.result for operation in operations]
    return results if isinstance(request, list | tuple) else results[0]


def _is_repeated(operation: Operation) -> bool:
    if isinstance(operation, Score):
        # A distribution comes with the keys of a fork; the others are results of a probe.
        return not operation.continuation and operation.head is None
    return isinstance(operation, REPEATED)


def _paths(operation: Operation) -> list[str]:
    """Of the branches that an operation works on."""
    branches = list(getattr(operation, "branches", ()))
    branches += [
        getattr(operation, name) for name in ("branch", "parent") if hasattr(operation, name)
    ]
    return [".".join(map(str, branch.path)) for branch in branches]
