"""`Dispatcher`: starts the calls of a plan as soon as what they need is there."""

from collections.abc import Collection

from parallel_decode.engine import Branch, Call, Cancel, FirstOf, Operation, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.tools.plan import Task, filled, stuck
from parallel_decode.reasoning.tools.toolbox import Result, Toolbox


class Dispatcher:
    """Tasks may be added while others run. Of those that could start, the one that is expected to
    take longest goes first; who adds the plan's lines in another order gets the same. A task whose
    argument is the result of one that failed is not made.

    Args:
        toolbox: what they call.
        max_running: calls at a time; None for no limit.
        branch: that they are for: once it was pruned or aborted, its calls end.

    Attributes:
        results: number of a task -> what came of it.
    """

    def __init__(
        self, toolbox: Toolbox, max_running: int | None = None, branch: Branch | None = None
    ) -> None:
        at_least(1, max_running=max_running)
        self.results: dict[int, Result] = {}
        self._toolbox = toolbox
        self._max_running = max_running
        self._branch = branch
        self._tasks: dict[int, Task] = {}
        self._needs: dict[int, set[int]] = {}
        self._last_ordered: int | None = None
        self._running: dict[int, tuple[Steps, Operation]] = {}

    def add(self, task: Task) -> None:
        """Starts it at once where it can; the program has to yield for that.

        Raises:
            ValueError: there is one of this number.
        """
        if task.number in self._tasks:
            raise ValueError(f"the plan has two tasks {task.number}")
        needs = set(task.after)
        tool = self._toolbox.tool(task.request.name)
        if tool is not None and tool.ordered:
            if self._last_ordered is not None:
                needs.add(self._last_ordered)
            self._last_ordered = task.number
        self._tasks[task.number] = task
        self._needs[task.number] = needs
        self._advance()

    @property
    def interrupted(self) -> bool:
        """Whether the run or the branch was stopped while calls ran."""
        return any(result.interrupted for result in self.results.values())

    @property
    def unfinished(self) -> list[int]:
        """Numbers of the tasks without a result."""
        return [number for number in self._tasks if number not in self.results]

    def seconds(self, numbers: Collection[int]) -> float:
        """How long the longest of these tasks is expected to take, by itself."""
        requests = [self._tasks[number].request for number in numbers]
        return max(map(self._toolbox.seconds, requests), default=0.0)

    def until(self, operation: Operation) -> Steps:
        """Waits for an operation of the program while the tasks go on -> its result."""
        while not operation.done:
            yield from self._moment(operation)
        if operation.error is not None:
            raise operation.error
        return operation.result

    def finish(self, numbers: Collection[int] | None = None) -> Steps:
        """Runs these tasks to their end, whatever they need included; None for all, as the plan is
        complete: what can never start fails -> None."""
        if numbers is None:
            for number, why in stuck(self._needs).items():
                self.results.setdefault(number, Result.error(why))
            numbers = list(self._tasks)
        self._advance()
        while self._running and not all(number in self.results for number in numbers):
            yield from self._moment()

    def cancel(self) -> Steps:
        """Gives up the calls that are under way; tasks that have not started never will."""
        running = [op for _, op in self._running.values() if isinstance(op, Call)]
        self._running, self._tasks = {}, {}
        yield Cancel(running)

    def _moment(self, *others: Operation) -> Steps:
        """Until something happens."""
        waiting = [*others, *(operation for _, operation in self._running.values())]
        try:
            yield FirstOf(waiting)
        except Exception:
            # Who asked for what failed is told by its own steps.
            if all(operation.error is None for operation in waiting):
                raise
        self._advance()

    def _advance(self) -> None:
        """Takes results in, and starts what can be started."""
        moving = True
        while moving:
            moving = False
            for number, (steps, operation) in list(self._running.items()):
                if operation.done:
                    moving = True
                    del self._running[number]
                    self._go_on(number, steps, operation)
            for number in self._ready():
                if self._max_running is None or len(self._running) < self._max_running:
                    moving = True
                    self._start(self._tasks[number])

    def _ready(self) -> list[int]:
        """What could start, the longest first."""
        ready = [
            number
            for number in self._tasks
            if number not in self.results
            and number not in self._running
            and self._needs[number] <= self.results.keys()
        ]
        return sorted(ready, key=lambda number: -self.seconds([number]))

    def _start(self, task: Task) -> None:
        failed = [number for number in sorted(task.after) if self.results[number].failed]
        if failed:
            why = f"not made: ${failed[0]}, which it needs, failed"
            self.results[task.number] = Result.error(why)
            return
        request = task.request
        if request.problem is None and not task.literal:
            request = filled(request, self.results)
        self._go_on(task.number, self._toolbox.run(request, self._branch), None)

    def _go_on(self, number: int, steps: Steps, done: Operation | None) -> None:
        try:
            if done is not None and done.error is not None:
                operation = steps.throw(done.error)
            else:
                operation = steps.send(None if done is None else done.result)
            self._running[number] = steps, operation
        except StopIteration as stop:
            self.results[number] = stop.value
