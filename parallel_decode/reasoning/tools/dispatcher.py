"""`Dispatcher`: starts the tasks of a plan as soon as what they need is there."""

from parallel_decode.engine import FirstOf, Operation, Steps
from parallel_decode.reasoning.tools.plan import Task, check_plan, filled
from parallel_decode.reasoning.tools.toolbox import Toolbox


class Dispatcher:
    """Tasks may be added while others run; it yields nothing itself.

    Attributes:
        results: number of a task -> its result as text.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self.tasks: list[Task] = []
        self.results: dict[int, str] = {}
        self._toolbox = toolbox
        self._running: dict[int, tuple[Steps, Operation]] = {}

    def add(self, task: Task) -> None:
        self.tasks.append(task)

    @property
    def operations(self) -> list[Operation]:
        """What its tasks wait for."""
        return [operation for _, operation in self._running.values()]

    def advance(self) -> None:
        """Takes results in, and starts what can be started."""
        moving = True
        while moving:
            moving = False
            for number, (steps, operation) in list(self._running.items()):
                if operation.done:
                    moving = True
                    del self._running[number]
                    self._go_on(number, steps, operation)
            for task in self.tasks:
                if task.number not in self.results and self._may_start(task):
                    moving = True
                    steps = self._toolbox.run(filled(task.request, self.results))
                    self._go_on(task.number, steps, None)

    def finish(self) -> Steps:
        """The plan is complete: runs it to its end -> its results.

        Raises:
            ValueError: see `check_plan`.
        """
        check_plan(self.tasks)
        self.advance()
        while self._running:
            yield from _any_of(self.operations)
            self.advance()
        return self.results

    def _may_start(self, task: Task) -> bool:
        if task.number in self._running or not task.after <= self.results.keys():
            return False
        if not self._ordered(task):
            return True
        before = self.tasks[: self.tasks.index(task)]
        return all(t.number in self.results for t in before if self._ordered(t))

    def _ordered(self, task: Task) -> bool:
        tool = self._toolbox.tool(task.request.name)
        return tool is not None and tool.ordered

    def _go_on(self, number: int, steps: Steps, done: Operation | None) -> None:
        try:
            if done is not None and done.error is not None:
                operation = steps.throw(done.error)
            else:
                operation = steps.send(None if done is None else done.result)
            self._running[number] = steps, operation
        except StopIteration as stop:
            self.results[number] = stop.value


def _any_of(operations: list[Operation]) -> Steps:
    """Waits for one of them; who asked for what failed is told by its own steps."""
    try:
        yield FirstOf(operations)
    except Exception:
        if all(operation.error is None for operation in operations):
            raise
