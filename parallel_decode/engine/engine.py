"""The engine: one model, one pool of KV blocks, and the primitives on branches."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.branch import Branch, View
from parallel_decode.engine.budget import Budget, Usage
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.executor import Executor
from parallel_decode.engine.grammars import Grammars
from parallel_decode.engine.interrupted import Interrupted
from parallel_decode.engine.kv_cache import KVCache, bytes_per_token
from parallel_decode.engine.operation import (
    Broadcast,
    Extend,
    Fork,
    ForkPositions,
    Join,
    JoinMode,
    JoinPositions,
    Operation,
    Prefill,
    Prune,
    Rollback,
    Score,
    See,
    Verify,
)
from parallel_decode.engine.placement import Placement
from parallel_decode.engine.prefix_tree import PrefixTree
from parallel_decode.engine.primitives import Primitives
from parallel_decode.engine.program import Program, Steps
from parallel_decode.engine.runner import Runner, StepStats
from parallel_decode.engine.sampler import Sampler
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.scheduler import Scheduler
from parallel_decode.engine.speculator import Speculator
from parallel_decode.engine.step_graphs import CudaCapture, StepGraphs
from parallel_decode.engine.verification import VerifyRule
from parallel_decode.kernels import BLOCK_SIZE, Ops, open_ops
from parallel_decode.model.checkpoint import Checkpoint, open_checkpoint
from parallel_decode.model.tokenizer import StreamDecoder
from parallel_decode.model.transformer import Transformer


class Solver(Protocol):
    """A way to answer a question: its program yields operations and returns a result.

    The result has the attributes `usage` and `interrupted`, which the engine sets. Where it has a
    method `prepare(engine)`, that is called first, once for all its questions.
    """

    def program(self, question: str | Sequence[int]) -> Steps: ...


class Engine:
    """Decodes many branches over one stored copy of everything that they share.

    Every primitive below runs at once, together with all programs that are live. Not thread-safe.

    Args:
        checkpoint: config, weights and tokenizer.
        dtype: storage of the weights. On a CPU "float32" by default; products of "float32",
            "bfloat16" and "float16" are fp32, "int8" and "int4" have a scale for every 32 weights,
            and round activations to 8 bits. What a GGUF file holds in 8 or 4 bits keeps its values.
            On a GPU "bfloat16" by default, "float16" or "float32", which activations have as well.
        kv_dtype: storage of keys and values. On a CPU "float32", "float16" or "int8", with fp32
            products; on a GPU as `dtype`, or "float8_e4m3fn".
        device: "cpu", "cuda" or "cuda:1".
        backend: "cpu" (C++), "triton" or "reference" (PyTorch); None for what the device has.
        isa: instruction set of the C++ kernels, "best" or a name of `parallel_decode._C`.
        threads: of the whole process's kernels; None for one a core.
        kv_tokens: tokens that the KV pool holds; None for what 4 GiB hold, or most of a GPU's free
            memory.
        max_seq_len: longest branch in tokens; None for the model's own context.
        max_batch_tokens: tokens of one forward step.
        seed: of all draws whose parameters give no seed of their own.
        cuda_graphs: whether a GPU runs plain decode steps as CUDA graphs.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str | torch.dtype | None = None,
        kv_dtype: str | None = None,
        device: str | torch.device = "cpu",
        backend: str | None = None,
        isa: str = "best",
        threads: int | None = None,
        kv_tokens: int | None = None,
        max_seq_len: int | None = None,
        max_batch_tokens: int = 1024,
        seed: int = 0,
        cuda_graphs: bool = True,
    ) -> None:
        placement = Placement.choose(device, backend, dtype, kv_dtype)
        config = checkpoint.config
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}")
        context = config.max_position_embeddings
        self.max_seq_len = context if max_seq_len is None else max_seq_len
        if self.max_seq_len < 1:
            raise ValueError(f"max_seq_len must be at least 1, got {max_seq_len}")
        _C.set_num_threads(len(os.sched_getaffinity(0)) if threads is None else threads)
        self.name = checkpoint.name
        self.config = config
        self.tokenizer = checkpoint.tokenizer
        self.chat_template = checkpoint.chat_template
        self.seed = seed
        self.placement = placement
        self.ops: Ops = open_ops(placement.backend, isa, placement.device)
        self.model = Transformer(
            config,
            checkpoint.tensors,
            self.ops,
            placement.dtype,
            self.max_seq_len,
            placement.device,
        )
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        size = bytes_per_token(*shape, placement.kv_torch_dtype)
        tokens = int(placement.default_kv_bytes / size) if kv_tokens is None else kv_tokens
        if tokens < BLOCK_SIZE:
            raise ValueError(f"kv_tokens must be at least one block of {BLOCK_SIZE}, got {tokens}")
        self.cache = KVCache(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            tokens // BLOCK_SIZE,
            self.ops,
            placement.kv_torch_dtype,
            placement.device,
        )
        self._tree = PrefixTree(self.cache.pool)
        grammars = Grammars(self.tokenizer, config.vocab_size, self.ops)
        self._primitives = Primitives(
            self.cache,
            self.tokenizer,
            config.vocab_size,
            self.max_seq_len,
            self._turn_keys,
            self._tree.evict,
            max_batch_tokens,
            grammars,
            self.ops,
        )
        self._scheduler = Scheduler(
            Runner(self.model, self.cache, self._step_graphs(cuda_graphs)),
            Sampler(self.ops, config.vocab_size, self.tokenizer.eos_ids, grammars),
            self._primitives,
            self.cache,
            self._tree,
            self.tokenizer,
            self.ops,
            self.max_seq_len,
            max_batch_tokens,
        )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, allow_download: bool = False, **options: Any
    ) -> Engine:
        """Opens a model: a directory, a .gguf file, a hub id, "reasoner" or "smollm2".

        Args:
            source: what to open.
            allow_download: whether a hub id may be fetched; needs the extra `hub`.
            options: keyword arguments of `Engine`.

        Raises:
            ValueError: the source, one of its files or an option is not usable; the message names
                the offending value.
        """
        return cls(open_checkpoint(source, allow_download=allow_download), **options)

    def _step_graphs(self, wanted: bool) -> StepGraphs | None:
        plans = self.ops.plans
        if not wanted or plans is None or self.placement.device.type != "cuda":
            return None
        return StepGraphs(self.model, self.cache, plans, CudaCapture())

    def _turn_keys(self, keys: Tensor, positions: Tensor) -> Tensor:
        """RoPE of keys [num_tokens, num_kv_heads, head_dim] at `positions` [num_tokens] int32."""
        keys, positions = (x.to(self.placement.device) for x in (keys, positions))
        _, turned = self.ops.rope(
            keys.clone(), keys.clone(), self.model.cos, self.model.sin, positions
        )
        return turned

    # ---- primitives ----

    def prefill(self, prompt: str | Sequence[int]) -> Branch:
        """A root branch that holds the prompt. See `Prefill`."""
        return self.run(Prefill(prompt))

    def extend(
        self,
        branches: Branch | Sequence[Branch],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tokens: str | Sequence[int] = (),
        logprobs: bool = False,
        keep_hidden: str | Sequence[str] = (),
        on_token: Callable[[Branch, int], None] | None = None,
    ) -> list[Branch]:
        """Samples, or appends tokens, or both, on all branches in one batch. See `Extend`."""
        return self.run(Extend(_listed(branches), params, tokens, logprobs, keep_hidden, on_token))

    def fork(
        self,
        branch: Branch,
        n: int = 1,
        *,
        at: int | None = None,
        positions: ForkPositions = "inherit",
        lengths: Sequence[int] = (),
    ) -> list[Branch]:
        """n children that share the branch's blocks. See `Fork`."""
        return self.run(Fork(branch, n, at, positions, lengths))

    def score(
        self,
        branches: Branch | Sequence[Branch],
        continuation: str | Sequence[int] = (),
        head: Callable[[Tensor], Tensor] | None = None,
        at: str | Sequence[str] = (),
        *,
        distribution: bool = False,
    ) -> list[Any]:
        """Log-probabilities or a head's values, one result a branch. See `Score`."""
        return self.run(Score(_listed(branches), continuation, head, at, distribution))

    def verify(
        self,
        branches: Branch | Sequence[Branch],
        drafts: Sequence[DraftTree],
        params: SamplingParams | Sequence[SamplingParams],
        rule: VerifyRule = "match",
        *,
        draft_probs: Sequence[Tensor | None] | None = None,
        replacement: bool = False,
        num_generated: int | Sequence[int] = 0,
        on_token: Callable[[Branch, int], None] | None = None,
    ) -> list[list[int]]:
        """Commits what is right of drafts, and one token more, in one step. See `Verify`."""
        return self.run(
            Verify(
                _listed(branches),
                drafts,
                params,
                rule,
                draft_probs,
                replacement,
                num_generated,
                on_token,
            )
        )

    def prune(self, branches: Branch | Sequence[Branch]) -> None:
        """Ends branches and frees their own blocks at once; may be called from `on_token`."""
        self._at_once(Prune(_listed(branches)))

    def rollback(self, branch: Branch, num_tokens: int) -> Branch:
        """Truncates a branch, as if it had never gone further."""
        return self.run(Rollback(branch, num_tokens))

    def join(
        self,
        parent: Branch,
        branches: Sequence[Branch],
        mode: JoinMode,
        positions: JoinPositions | None = None,
        *,
        separator: str | Sequence[int] = (),
        extract: Callable[[Branch], str | Sequence[int]] | None = None,
        embeddings: Tensor | None = None,
    ) -> Branch:
        """A child of `parent` that continues from its forks. See `Join`."""
        return self.run(Join(parent, branches, mode, positions, separator, extract, embeddings))

    def see(
        self, branch: Branch, views: Sequence[Branch | View], offset: int | None = None
    ) -> None:
        """Lets a branch attend to others as these grow. See `See`."""
        self.run(See(branch, views, offset))

    def broadcast(
        self,
        branches: Branch | Sequence[Branch],
        tokens: str | Sequence[int],
        after: str | None = None,
    ) -> None:
        """Injects tokens at a safe point; may be called from `on_token`. See `Broadcast`."""
        self._at_once(Broadcast(_listed(branches), tokens, after))

    def _at_once(self, operation: Operation) -> None:
        """What needs no step of the model can be done in the middle of one."""
        _, finish = self._primitives.start(operation, _NO_PROGRAM)
        finish()

    def abort(self, branch: Branch) -> None:
        """Ends the sampling of one branch, and its calls; may be called from `on_token`."""
        self._scheduler.abort(branch)

    def stream(
        self, branches: Branch | Sequence[Branch], params: SamplingParams | Sequence[SamplingParams]
    ) -> Iterator[tuple[Branch, int, str]]:
        """Samples as `extend` does and yields (branch, token id, new text) as tokens come.

        Text is held back while a character is incomplete. Closing the iterator aborts the branches.
        """
        branches = _listed(branches)
        arrived: list[tuple[Branch, int]] = []
        decoders = {id(branch): StreamDecoder(self.tokenizer) for branch in branches}
        for branch in branches:  # a character may have begun, a first space been dropped before
            for token in branch.output_tokens:
                decoders[id(branch)].push(token)
        operation = Extend(branches, params, on_token=lambda b, token: arrived.append((b, token)))
        program = self.submit(_single(operation), keep=True)
        try:
            while program.status != "done":
                self._scheduler.step()
                for branch, token in arrived:
                    yield branch, token, decoders[id(branch)].push(token)
                arrived.clear()
        finally:
            if program.status != "done":
                self._scheduler.interrupt([program])
                self.wait([program])
        if program.error is not None:
            raise program.error

    # ---- programs ----

    def submit(
        self,
        steps: Steps,
        *,
        budget: Budget | None = None,
        seed: int | None = None,
        keep: bool = False,
    ) -> Program:
        """Starts a program; it moves on whenever the engine runs.

        Args:
            steps: a generator that yields operations and returns the program's result.
            budget: its limits.
            seed: of its draws; None for the engine's.
            keep: leave its branches' blocks in place when it ends.
        """
        return self._scheduler.submit(
            steps, budget or Budget(), self.seed if seed is None else seed, keep
        )

    @property
    def in_step(self) -> bool:
        """Whether it is in the middle of a step."""
        return self._scheduler.in_step

    @property
    def idle(self) -> bool:
        """Whether the last step found nothing to run before a call outside is done."""
        return self._scheduler.idle

    def step(self, *, wait: bool = True) -> bool:
        """One step of all that is live -> whether anything is left to do. For who runs two engines
        side by side; `wait` does it otherwise.

        Args:
            wait: sleep for a moment where nothing can run before a call outside is done.
        """
        return self._scheduler.step(wait=wait)

    def drop(self, program: Program) -> None:
        """Ends a program where it stands and frees its blocks."""
        self._scheduler.drop([program], Interrupted("nobody waits for it any more"))

    def wait(self, programs: Sequence[Program]) -> bool:
        """Runs until these programs are done -> whether Ctrl-C cut them short.

        On Ctrl-C sampling ends, the programs conclude with what they have, and blocks return. A
        second Ctrl-C ends the process as usual.
        """
        interrupted = False
        try:
            with _SigintFlag() as flag:
                while any(program.status != "done" for program in programs):
                    if flag.raised and not interrupted:
                        interrupted = True
                        self._scheduler.interrupt(programs)
                    self._scheduler.step()
        except BaseException as error:
            # Nobody waits for them any more; they must not run along with what comes next.
            self._scheduler.drop(programs, error)
            raise
        return interrupted

    def run(self, operation: Operation) -> Any:
        """Carries out one operation and gives its result."""
        return self.run_program(_single(operation), keep=True)

    def run_program(
        self,
        steps: Steps,
        *,
        budget: Budget | None = None,
        seed: int | None = None,
        keep: bool = False,
    ) -> Any:
        """Runs a program to its end and gives its result, or raises its error."""
        program = self.submit(steps, budget=budget, seed=seed, keep=keep)
        interrupted = self.wait([program])
        if program.error is not None:
            if interrupted:
                raise KeyboardInterrupt from program.error
            raise program.error
        return program.result

    def solve(
        self,
        question: str | Sequence[int],
        method: Solver,
        *,
        budget: Budget | None = None,
        seed: int | None = None,
    ) -> Any:
        """Answers one question by a method; its result's `usage` tells the cost."""
        [result] = self.solve_many([question], method, budget=budget, seed=seed)
        if isinstance(result, BaseException):
            raise result
        return result

    def solve_many(
        self,
        questions: Sequence[str | Sequence[int]],
        method: Solver | Sequence[Solver],
        *,
        budget: Budget | None = None,
        seed: int | None = None,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Answers all questions in one continuous batch.

        A question that fails gives its exception in the list; the others go on.

        Args:
            questions: prompts, as text or token ids.
            method: what to do with each; one for all or one a question.
            budget: limits of each question.
            seed: of the draws; None for the engine's.
            on_result: called with (index, result) as each question ends.
        """
        if isinstance(questions, str):
            raise ValueError("questions must be a list; use solve() for one")
        methods = method if isinstance(method, Sequence) else [method] * len(questions)
        if len(methods) != len(questions):
            raise ValueError(f"{len(methods)} methods for {len(questions)} questions")
        for one in {id(one): one for one in methods}.values():
            prepare = getattr(one, "prepare", None)
            if prepare is not None:
                prepare(self)
        programs = [
            self.submit(_reported(one, question, index, on_result), budget=budget, seed=seed)
            for index, (question, one) in enumerate(zip(questions, methods, strict=True))
        ]
        interrupted = self.wait(programs)
        results: list[Any] = []
        for program in programs:
            if program.error is not None:
                results.append(program.error)
                continue
            program.result.usage = program.usage
            program.result.timeline = program.timeline.moments
            program.result.interrupted = interrupted
            results.append(program.result)
        return results

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation in the model's own format, ready for `prefill`.

        Raises:
            ValueError: the model has no chat template, or the template fails.
        """
        if self.chat_template is None:
            raise ValueError(
                f"the model {self.name!r} has no chat template: give it a plain prompt"
            )
        text = self.chat_template.render(messages, **variables)
        return self.tokenizer.encode(text, add_bos=False)

    # ---- memory and figures ----

    def pin(self, prefix: str | Sequence[int]) -> int:
        """Computes a prefix and keeps its full blocks until `unpin` -> tokens pinned."""
        branch = self.prefill(prefix)
        tokens = branch.tokens
        branch.release()
        return self._tree.pin(tokens, 1)

    def unpin(self, prefix: str | Sequence[int]) -> int:
        """Takes one pin back -> tokens it held."""
        return self._tree.pin(self._primitives.checks.encode(prefix, is_prompt=True), -1)

    def clear_prefixes(self) -> int:
        """Drops stored prefixes that no branch uses and nobody pinned -> blocks freed."""
        return self._tree.evict(self.cache.pool.num_blocks)

    @property
    def speculator(self) -> Speculator | None:
        """What guesses ahead of sampled branches. It changes how long they take, and nothing else:
        see `parallel_decode.speculation`."""
        return self._scheduler.speculator

    @speculator.setter
    def speculator(self, speculator: Speculator | None) -> None:
        self._scheduler.speculator = speculator

    @property
    def executor(self) -> Executor:
        """Who runs the callables of `Call`: `Threads`, or a `SimulatedExecutor`. To be set while no
        call is under way."""
        return self._scheduler.calls.executor

    @executor.setter
    def executor(self, executor: Executor) -> None:
        if self._scheduler.calls:
            raise ValueError("calls are under way: their executor can't be changed")
        self._scheduler.calls.executor = executor

    @property
    def blocks_in_use(self) -> int:
        """Blocks that branches hold."""
        return self._scheduler.num_blocks_held

    @property
    def blocks_cached(self) -> int:
        """Blocks that only the prefix tree holds, for prompts to come."""
        return self.cache.pool.num_idle

    @property
    def usage(self) -> Usage:
        """What the engine as a whole has used so far."""
        return self._scheduler.usage.snapshot()

    def observe(self, observer: Callable[[StepStats], None]) -> Callable[[], None]:
        """Calls `observer` after each forward step -> a function that ends this."""
        self._scheduler.on_step.append(observer)
        return lambda: self._scheduler.on_step.remove(observer)


class _SigintFlag:
    """Turns the first Ctrl-C into a flag, on the main thread."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> _SigintFlag:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if self._previous is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def _handle(self, number: int, frame: Any) -> None:
        self.raised = True
        signal.signal(signal.SIGINT, self._previous)

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)


def _single(operation: Operation) -> Steps:
    result = yield operation
    return result


def _reported(
    method: Solver,
    question: str | Sequence[int],
    index: int,
    on_result: Callable[[int, Any], None] | None,
) -> Steps:
    result = yield from method.program(question)
    if on_result is not None:
        on_result(index, result)
    return result


def _listed(branches: Branch | Sequence[Branch]) -> list[Branch]:
    return [branches] if isinstance(branches, Branch) else list(branches)


_NO_PROGRAM = Program(iter(()), Budget(), 0, -1, True)  # type: ignore[arg-type]
