"""Runs the works of all live programs, in one batch a step."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from parallel_decode.engine.admission import Admission, Entry
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.budget import Budget, Usage
from parallel_decode.engine.calls import Calls
from parallel_decode.engine.checks import Settling
from parallel_decode.engine.chunk import Chunk
from parallel_decode.engine.decoder import Decoder
from parallel_decode.engine.draft_tree import NO_DRAFT
from parallel_decode.engine.draft_verifier import DraftVerifier
from parallel_decode.engine.drafting import Drafting
from parallel_decode.engine.guests import Guests
from parallel_decode.engine.interrupted import Interrupted
from parallel_decode.engine.kv_cache import KVCache, PoolExhausted
from parallel_decode.engine.operation import (
    Call,
    Cancel,
    Delegate,
    FirstOf,
    Operation,
    Prefill,
    Rollback,
    Score,
)
from parallel_decode.engine.prefix_tree import PrefixTree
from parallel_decode.engine.primitives import Primitives
from parallel_decode.engine.program import Program, Steps
from parallel_decode.engine.runner import Computed, Runner, StepStats
from parallel_decode.engine.sampler import Sampler, token_records
from parallel_decode.engine.speculator import Speculator
from parallel_decode.engine.threads import Threads
from parallel_decode.engine.verified import Verified
from parallel_decode.engine.work import Finish, Work
from parallel_decode.kernels import BLOCK_SIZE, Ops
from parallel_decode.model.tokenizer import Tokenizer

# Counted by programs alone, and added to the engine's own figures when they end.
ENGINE_TOTALS = (
    "prompt_tokens",
    "prompt_tokens_shared",
    "probes",
    "drafted_tokens",
    "delegated_tokens",
    "calls",
    "swapped_tokens",
)
MOMENT = 0.05
"""Seconds after which who sleeps looks at Ctrl-C and at limits of time."""


class Scheduler:
    """Continuous batching: branches join and leave at every step.

    A step resumes programs whose operations are done, samples a token for each branch that has
    logits, and runs what is then pending through the model: one token a sampled branch, and chunks
    of prompts and appended tokens up to `max_batch_tokens`.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        primitives: Primitives,
        cache: KVCache,
        tree: PrefixTree,
        tokenizer: Tokenizer,
        ops: Ops,
        max_seq_len: int,
        max_batch_tokens: int,
    ) -> None:
        self.usage = Usage()
        self._runner = runner
        self._primitives = primitives
        self._cache = cache
        self._ops = ops
        self._max_batch_tokens = max_batch_tokens
        self._admission = Admission(runner, cache, tree, self.usage)
        self._decoder = Decoder(
            sampler,
            DraftVerifier(sampler, ops),
            tokenizer,
            max_seq_len,
            self.usage,
            lambda program, error: self._end(program, error=error),
        )
        self._drafting = Drafting(
            runner, self._decoder, cache, self.usage, max_seq_len, max_batch_tokens
        )
        self._num_submitted = 0
        self._programs: list[Program] = []
        self._finishers: dict[int, tuple[Operation, list[Work], Finish]] = {}
        self._queue: dict[int, tuple[Program, Operation]] = {}
        self._works: list[tuple[Program, Work]] = []
        self._guests = Guests()
        self.calls = Calls(Threads())
        self.idle = False
        self._works_changed = False
        self.in_step = False
        self.on_step: list[Callable[[StepStats], None]] = []

    @property
    def speculator(self) -> Speculator | None:
        return self._drafting.speculator

    @speculator.setter
    def speculator(self, speculator: Speculator | None) -> None:
        self._drafting.speculator = speculator

    # ---- programs ----

    def submit(self, steps: Steps, budget: Budget, seed: int, keep: bool) -> Program:
        program = Program(steps, budget, seed, self._num_submitted, keep)
        self._num_submitted += 1
        self._programs.append(program)
        return program

    @property
    def live_programs(self) -> Sequence[Program]:
        return self._programs

    def interrupt(self, programs: Sequence[Program], reason: str = "aborted") -> None:
        """Ends sampling of these programs; they go on to their end with what they have."""
        for program in programs:
            program.stop_reason = program.stop_reason or reason
            self._guests.stop(program, reason)
            self.calls.stop(program, Interrupted(f"the call was stopped: {reason}"))
            if program.status == "preempted":
                program.status = "waiting"

    def abort(self, branch: Branch) -> None:
        """Ends the sampling of one branch, and its calls; its siblings do not notice."""
        if self.calls.stop_branch(branch, "aborted"):
            branch.finish_reason = "aborted"
        work = self._primitives.running.get(id(branch))
        if work is not None and work.params is not None and not work.done:
            self._decoder.finish(work, "aborted")

    def drop(self, programs: Sequence[Program], error: BaseException) -> None:
        """Ends programs where they stand."""
        for program in programs:
            if program.status != "done":
                self._end(program, error=error)

    def step(self, *, wait: bool = True) -> bool:
        """One step -> whether anything is left to do.

        Args:
            wait: sleep for a moment where nothing can run before a call outside is done.
        """
        if self.in_step:
            raise RuntimeError(
                "the engine is in the middle of a step: a program yields its operations, and a"
                " callback can broadcast, abort and prune"
            )
        self.in_step, self.idle = True, False
        try:
            left = self._step()
        finally:
            self.in_step = False
        if wait and self.idle:
            self.calls.wait(MOMENT) if self.calls else self._guests.wait()
        return left

    def _step(self) -> bool:
        self.calls.collect()
        self._resume_programs()
        if not self._programs:
            return False
        self._guests.step()
        self._enforce_limits()
        started = time.perf_counter()
        self._decoder.step(self._works)
        self._sweep()
        chunks, exhausted = self._admission.fit(self._next_chunks(), self._programs)
        if exhausted is not None:
            self._exhaust(exhausted)
        elif chunks:
            num_rows, verified = self._forward(self._drafting.add(chunks))
            if self.speculator is not None and verified:
                self.speculator.learn(verified, num_rows, time.perf_counter() - started)
        elif not any(program.status == "ready" for program in self._programs):
            self._unblock()
        self._sweep()
        return True

    def _resume_programs(self) -> None:
        progress = True
        while progress:
            progress = self._start_queued()
            for program in list(self._programs):
                if program.status == "waiting" and self._may_resume(program):
                    program.status = "ready"
                while program.status == "ready":
                    progress = True
                    self._resume(program)
        self._admission.restart(self._programs)

    def _may_resume(self, program: Program) -> bool:
        done = [operation.done for operation in program.waiting_for]
        return any(done) if program.any_is_enough else all(done)

    def _resume(self, program: Program) -> None:
        finished = [operation for operation in program.waiting_for if operation.done]
        error = next((op.error for op in finished if op.error is not None), None)
        try:
            if error is not None:
                request = program.steps.throw(error)
            elif program.any_is_enough:
                request = program.steps.send(finished)
            else:
                results = [operation.result for operation in program.waiting_for]
                value: Any = results if program.as_list else (results[0] if results else None)
                request = program.steps.send(value)
            self._accept(program, request)
        except StopIteration as stop:
            self._end(program, result=stop.value)
        except Exception as failure:
            self._end(program, error=failure)

    def _accept(self, program: Program, request: Any) -> None:
        program.any_is_enough = isinstance(request, FirstOf)
        program.as_list = isinstance(request, list | tuple)
        if isinstance(request, FirstOf):
            operations = list(request.operations)
        else:
            operations = list(request) if program.as_list else [request]
        program.waiting_for = operations
        program.status = "waiting"
        for operation in operations:
            if not isinstance(operation, Operation):
                raise TypeError(f"a program must yield operations, got {operation!r}")
            known = (
                id(operation) in self._finishers
                or id(operation) in self._queue
                or operation in self._guests
                or operation in self.calls
            )
            if not operation.done and not known:
                self._queue[id(operation)] = (program, operation)
        self._start_queued()
        if not operations:
            program.status = "ready"

    def _start(self, program: Program, operation: Operation) -> bool:
        """Starts an operation -> whether it need not be tried again later."""
        if program.stop_reason == "aborted" and isinstance(operation, Prefill):
            operation.error, operation.done = Interrupted("stopped before it began"), True
            return True
        if program.stop_reason is not None and isinstance(operation, Call):
            why = f"the call was not made: {program.stop_reason}"
            operation.error, operation.done = Interrupted(why), True
            return True
        try:
            if isinstance(operation, Call):
                self.calls.add(program, operation)
                return True
            if isinstance(operation, Cancel):
                self.calls.cancel(operation.calls)
                operation.done = True
                return True
            if isinstance(operation, Delegate):
                self._guests.add(program, operation)
                return True
            works, finish = self._primitives.start(operation, program)
            for work in works:
                self._add(program, work)
            self._finishers[id(operation)] = (operation, works, finish)
            if not works:
                self._complete(operation)
        except Settling:
            return False
        except Exception as failure:
            operation.error, operation.done = failure, True
        if isinstance(operation, Rollback) and operation.error is None and self.speculator:
            self.speculator.observe(operation.branch)
        return True

    def _start_queued(self) -> bool:
        """Starts what waits for its turn, each program's operations in their order, until one
        meets a branch that is not settled -> whether any was started."""
        blocked: set[int] = set()
        started = False
        for key, (program, operation) in list(self._queue.items()):
            if id(program) not in blocked and self._start(program, operation):
                del self._queue[key]
                started = True
            else:
                blocked.add(id(program))
        return started

    def _add(self, program: Program, work: Work) -> None:
        self._primitives.running[id(work.branch)] = work
        program.works.append(work)
        self._works.append((program, work))
        self._works_changed = True

    def _complete(self, operation: Operation) -> None:
        _, _, finish = self._finishers.pop(id(operation))
        try:
            operation.result = finish()
        except Exception as failure:
            operation.error = failure
        operation.done = True

    def _end(
        self, program: Program, result: Any = None, error: BaseException | None = None
    ) -> None:
        self._guests.drop(program)
        self.calls.drop(program)
        for work in program.works:
            work.done = True
            self._finishers.pop(id(work.operation), None)
        self._queue = {key: entry for key, entry in self._queue.items() if entry[0] is not program}
        for conclude in (self._sweep, lambda: program.steps.close()):
            try:
                conclude()
            except Exception as failure:
                error = error or failure
        program.finish(result, error)
        for name in ENGINE_TOTALS:
            total = getattr(self.usage, name) + getattr(program.usage, name)
            setattr(self.usage, name, total)
        self._programs.remove(program)

    def _sweep(self) -> None:
        """Takes finished works out and completes operations that wait for nothing more."""
        done = [(program, work) for program, work in self._works if work.done]
        if not done:
            return
        self._works = [pair for pair in self._works if not pair[1].done]
        touched: dict[int, Operation] = {}
        for program, work in done:
            program.works.remove(work)
            if self._primitives.running.get(id(work.branch)) is work:
                del self._primitives.running[id(work.branch)]
            self._admission.withdraw(work)
            if isinstance(work.operation, Score):
                work.branch.table.truncate(0)  # a probe, and its result is known
            entry = self._finishers.get(id(work.operation))
            if entry is None:
                continue
            if work.then is not None:
                followers, work.then = work.then(), None
                entry[1].extend(followers)
                for follower in followers:
                    self._add(program, follower)
            touched[id(work.operation)] = work.operation
        for key, operation in touched.items():
            if all(work.done for work in self._finishers[key][1]):
                self._complete(operation)
        if self.speculator is not None:
            for _, work in done:
                if work.params is not None:
                    self.speculator.forget(work.branch)

    @property
    def num_blocks_held(self) -> int:
        """Blocks that branches hold."""
        return self._admission.num_blocks_held()

    def _enforce_limits(self) -> None:
        held = self.num_blocks_held
        for program in self._programs:
            if program.stop_reason is None and program.over_budget(held):
                program.stop_reason = "budget"
                self.calls.stop(program, Interrupted("the call was stopped: budget"))
            if program.stop_reason is not None:
                for work in program.works:
                    if work.params is not None:
                        self._decoder.finish(work, program.stop_reason)

    # ---- forward ----

    def _next_chunks(self) -> list[Entry]:
        """Pending tokens of this step, siblings next to each other."""
        if self._works_changed:
            self._works.sort(key=lambda pair: (pair[0].order, pair[1].branch.path))
            self._works_changed = False
        running = [
            (program, work)
            for program, work in self._works
            if program.status != "preempted" and self._admission.admit(program, work)
        ]
        budget = max(0, self._max_batch_tokens - len(running))
        chunks: list[Entry] = []
        for program, work in running[: self._max_batch_tokens]:
            branch = work.branch
            pending = branch.num_pending
            if pending == 0:
                work.done = work.done or work.params is None
                continue
            if budget < 0:
                break
            take = min(branch.next_run(), 1 + budget)
            if branch.sight is not None or branch.is_seen:
                take = 1  # what a token sees must not depend on the room in a step
            draft = NO_DRAFT
            if work.verification is not None and pending > 1:
                take = min(take, pending - 1)
            elif work.verification is not None:
                draft = work.verification.draft
                if len(draft) > budget and chunks:
                    continue  # it waits for a step that has room
            # Row i of the chunk speaks of the token after it.
            records = bool(
                work.recorded
                and branch.num_stored < work.recorded.stop
                and branch.num_stored + take >= work.recorded.start
            )
            num_logits = take if records else int(take == pending)
            chunk = Chunk(branch, branch.pending(take), num_logits, draft, records)
            budget -= chunk.num_rows - 1
            chunks.append((program, work, chunk))
        return chunks

    def _exhaust(self, program: Program) -> None:
        """The program does not fit: its operations fail, its blocks return."""
        size = self._cache.pool.num_blocks
        error = PoolExhausted(
            f"one question needs more than the {size} KV blocks ({size * BLOCK_SIZE} tokens) of the"
            " pool give, beside what others hold: open the engine with a larger kv_tokens, use"
            " fewer or shorter branches, or prune some"
        )
        for work in list(program.works):
            work.done = True
            self._admission.withdraw(work)
            work.branch.release()
            entry = self._finishers.pop(id(work.operation), None)
            if entry is not None:
                entry[0].error, entry[0].done = error, True

    def _forward(self, chunks: list[Entry]) -> tuple[int, list[Verified]]:
        """Computes the chunks -> tokens computed, and what became of drafts."""
        try:
            stats, computed = self._runner.forward([chunk for _, _, chunk in chunks])
        except BaseException:
            # The tables already count tokens that were not computed.
            for _, work, _ in chunks:
                self._admission.withdraw(work)
                work.branch.release()
                if not work.branch.recomputable:
                    self._decoder.fail(work, "the step in which it ran was cut off")
            raise
        for index, (program, work, chunk) in enumerate(chunks):
            program.usage.computed_tokens += chunk.num_rows
            row = None if work.kept is None else work.branch.hidden_row
            if row is not None:
                size = len(chunk.tokens)
                rows = range(row.number + 1 - size, row.number + 1)
                work.keep(work.branch.num_stored - size, row.tensor, rows)
            if chunk.gives_logits:
                self._record(work, chunk, computed[index])
            self._admission.stored(work)
            if work.params is None and not work.branch.num_pending:
                work.done = True
        verified = self._drafting.verify(chunks, computed)
        self._count(stats, list({id(program): program for program, _, _ in chunks}.values()))
        for observer in self.on_step:
            observer(stats)
        return stats.num_tokens, verified

    def _record(self, work: Work, chunk: Chunk, computed: Computed) -> None:
        """Log-probabilities of given tokens: row i of the chunk speaks of the token after it."""
        branch, logits, first_row = work.branch, computed.logits, computed.row
        first = branch.num_stored - len(chunk.tokens) + 1
        begin = max(first, work.recorded.start)
        end = min(branch.num_stored + 1, work.recorded.stop)
        targets = [(number, first_row + number - first) for number in range(begin, end)]
        if not targets:
            return
        tokens = branch.tokens
        rows = logits[targets[0][1] : targets[-1][1] + 1]
        records = token_records(self._ops, rows, [tokens[number] for number, _ in targets])
        for (number, _), record in zip(targets, records, strict=True):
            branch.annotate(number - branch.prompt_length, record)
        work.recorded = range(end, work.recorded.stop)

    def _count(self, stats: StepStats, programs: Sequence[Program]) -> None:
        held = self.num_blocks_held
        for usage in (self.usage, *(program.usage for program in programs)):
            usage.forward_steps += 1
            usage.kv_tokens_read += stats.kv_tokens_read
            usage.kv_tokens_logical += stats.kv_tokens_logical
            if stats.kv_tokens_logical > usage.peak_kv_tokens_logical:
                usage.peak_kv_tokens_logical = stats.kv_tokens_logical
                usage.peak_kv_tokens_stored = stats.kv_tokens_stored
            usage.peak_blocks = max(usage.peak_blocks, held)
        self.usage.computed_tokens += stats.num_tokens
        for program in programs:
            usage = program.usage
            program.timeline.add(usage.forward_steps, usage.generated_tokens, held)

    def _unblock(self) -> None:
        """Nothing could run: start somebody again, or say why nobody can go on."""
        preempted = [p for p in self._programs if p.status == "preempted"]
        if preempted:
            preempted[0].status = "waiting"
            return
        stuck = [p for p in self._programs if p.status == "waiting" and not self._may_resume(p)]
        if any(program.works for program in stuck):
            return
        if self._guests or self.calls:
            self.idle = len(stuck) == len(self._programs) and self._guests.idle
            return
        for program in stuck:
            names = [type(operation).__name__ for operation in program.waiting_for]
            self._end(program, error=RuntimeError(f"{names} can never be done"))
