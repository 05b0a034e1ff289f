"""Bit-exactness: a branch has the same logits and tokens whatever runs beside it, and how.

A few children of one prompt are sampled, each alone in the pool on one thread: the reference. Then
they are sampled in every other circumstance, in every storage format; `equal` says whether the bits
of the logits of every step and the tokens were those of the reference in the same format.
Each case also checks that its circumstance did come about. Exits with 1 where a case is unequal.

    python -m benchmarks.equality --json equality.json
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.formats import FORMATS, Format
from benchmarks.memory import prompt as random_prompt
from benchmarks.report import Report, argument_parser
from benchmarks.trace import Trace
from parallel_decode import _C
from parallel_decode.engine import Branch, Engine, Extend, Fork, Prefill, SamplingParams
from parallel_decode.engine.program import Steps
from parallel_decode.kernels import BLOCK_SIZE, KV_DTYPES
from parallel_decode.model import Checkpoint, open_checkpoint

FORK_ORDERS = 3


@dataclass(frozen=True)
class Workload:
    """`watched` children of a random prompt of `prefix` tokens, which sample `suffix` tokens.

    crowd: how many branches run together in the large batches.
    """

    prefix: int
    suffix: int
    watched: int
    crowd: int = 64

    def prompt(self, engine: Engine, seed: int = 0) -> list[int]:
        return random_prompt(engine, self.prefix, seed)

    @property
    def pool_tokens(self) -> int:
        """Room for the whole crowd without any sharing."""
        return self.crowd * (self.prefix + self.suffix + 2 * BLOCK_SIZE) + 2 * self.prefix

    @property
    def tight_pool_tokens(self) -> int:
        """Two questions begin in it and only one of them ends."""
        blocks_to_end = -(-(self.prefix + self.suffix) // BLOCK_SIZE)
        shared = self.prefix // BLOCK_SIZE
        at_end = shared + 1 + self.watched * (blocks_to_end - shared)
        return (at_end + shared + 1 + self.watched) * BLOCK_SIZE


def sampled(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, ignore_eos=True)


# ---- circumstances ----


def alone(engine: Engine, work: Workload, trace: Trace) -> None:
    """One branch after the other, each the only one that holds a block."""
    for number in range(work.watched):
        root = engine.prefill(work.prompt(engine))
        *others, child = engine.fork(root, number + 1)
        engine.prune([root, *others])
        trace.follow(child)
        engine.extend(child, sampled(work.suffix))
        engine.prune(child)
        engine.clear_prefixes()


def children(engine: Engine, work: Workload, trace: Trace) -> None:
    """The watched branches together, over one stored prefix."""
    root = engine.prefill(work.prompt(engine))
    kids = engine.fork(root, work.watched)
    trace.follow(*kids)
    engine.extend(kids, sampled(work.suffix))
    engine.prune([root, *kids])


def crowd(engine: Engine, work: Workload, trace: Trace) -> None:
    """Among many children of the same prompt."""
    root = engine.prefill(work.prompt(engine))
    kids = engine.fork(root, work.crowd)
    trace.follow(*kids[: work.watched])
    engine.extend(kids, sampled(work.suffix))
    check_together(trace, work)
    if trace.steps[-1].kv_tokens_logical <= 2 * trace.steps[-1].kv_tokens_read:
        raise AssertionError("the prefix must be stored once")
    engine.prune([root, *kids])


def check_together(trace: Trace, work: Workload) -> None:
    if any(step.num_branches != work.crowd for step in trace.steps[-work.suffix + 1 :]):
        raise AssertionError(f"{work.crowd} branches must run together")


def copies(engine: Engine, work: Workload, trace: Trace) -> None:
    """Among many branches, each with its own copy of the prefix's keys and values."""
    tokens = work.prompt(engine)
    roots, kids = [], []
    for number in range(work.crowd):
        root = engine.prefill(tokens)
        # What is appended is computed, even where the prefix tree has the same tokens.
        engine.rollback(root, 1)
        engine.extend(root, tokens=tokens[1:])
        *others, child = engine.fork(root, number % work.watched + 1)
        engine.prune(others)
        roots.append(root)
        kids.append(child)
    trace.follow(*kids[: work.watched])
    engine.prune(roots)
    engine.extend(kids, sampled(work.suffix))
    check_together(trace, work)
    if trace.steps[-1].kv_tokens_logical != trace.steps[-1].kv_tokens_read:
        raise AssertionError("nothing may be shared")
    engine.prune(kids)


def strangers(engine: Engine, work: Workload, trace: Trace) -> None:
    """Among many branches, most of them of other prompts and lengths, which come and go."""
    root = engine.prefill(work.prompt(engine))
    kids = engine.fork(root, work.watched)
    trace.follow(*kids)
    others = [
        engine.prefill(random_prompt(engine, 1 + (7 * number) % work.prefix, seed=number + 1))
        for number in range(work.crowd - work.watched)
    ]
    lengths = [1 + (5 * number) % work.suffix for number in range(len(others))]
    together = [*others[: len(others) // 2], *kids, *others[len(others) // 2 :]]
    by_branch = dict(zip(map(id, others), lengths, strict=True))
    engine.extend(together, [sampled(by_branch.get(id(b), work.suffix)) for b in together])
    engine.prune([root, *together])


def fork_order(engine: Engine, work: Workload, trace: Trace, seed: int) -> None:
    """Children come one by one or in groups, in between others grow, fork, roll back and end."""
    rng = random.Random(seed)
    root = engine.prefill(work.prompt(engine))
    kids: list[Branch] = []
    wanted = work.watched + 3
    while len(kids) < wanted or any(kid.num_sampled < work.suffix for kid in kids):
        action = rng.choice(["fork", "extend", "extend", "grandchild", "root", "rollback"])
        if action == "fork" and len(kids) < wanted:
            count = rng.randint(1, min(3, wanted - len(kids)))
            # The parent may have gone on: its children begin where its prompt ends.
            new = engine.fork(root, count, at=work.prefix)
            trace.follow(*new[: max(0, work.watched - len(kids))])
            kids += new
        elif action == "extend":
            unfinished = [kid for kid in kids if kid.num_sampled < work.suffix]
            chosen = rng.sample(unfinished, rng.randint(0, len(unfinished)))
            counts = [rng.randint(1, work.suffix - kid.num_sampled) for kid in chosen]
            if chosen:
                engine.extend(chosen, list(map(sampled, counts)))
        elif action == "grandchild" and kids:
            parent = rng.choice(kids)
            at = rng.randint(1, parent.num_tokens)
            grandchildren = engine.fork(parent, rng.randint(1, 3), at=at)
            engine.extend(grandchildren, sampled(rng.randint(1, 4)))
            engine.prune(grandchildren)
        elif action == "root" and root.num_tokens < work.prefix + work.suffix:
            engine.extend(root, sampled(rng.randint(1, 3)))
        elif action == "rollback" and kids:
            kid = rng.choice(kids)
            engine.rollback(kid, rng.randint(work.prefix, kid.num_tokens))
    engine.prune([root, *kids])


def preempted(engine: Engine, work: Workload, trace: Trace) -> None:
    """Put out in the middle of sampling, because an older question needs the room."""

    def question(seed: int, watch: bool) -> Steps:
        root = yield Prefill(work.prompt(engine, seed))
        kids = yield Fork(root, work.watched)
        if watch:
            trace.follow(*kids)
        yield Extend(kids, sampled(work.suffix))

    programs = [engine.submit(question(1, False)), engine.submit(question(0, True))]
    engine.wait(programs)
    for program in programs:
        if program.error is not None:
            raise program.error
    if not programs[1].usage.preemptions or len(trace.taken_away) != work.watched:
        raise AssertionError("the watched question must be put out in the middle of sampling")


# ---- the matrix ----


@dataclass(frozen=True)
class Case:
    """A circumstance, and what the engine is opened with for it."""

    name: str
    script: Callable[[Engine, Workload, Trace], None]
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, engine: Engine, work: Workload) -> Trace:
        _C.set_num_threads(self.threads)
        trace = Trace(engine)
        try:
            self.script(engine, work, trace)
        finally:
            trace.stop()
            engine.clear_prefixes()
        if len(trace.logits) != work.watched * work.suffix:
            raise AssertionError(f"{self.name}: {len(trace.logits)} steps have been seen")
        return trace


def in_order(seed: int) -> Callable[[Engine, Workload, Trace], None]:
    return lambda engine, work, trace: fork_order(engine, work, trace, seed)


def cases(work: Workload) -> list[Case]:
    batch = f"batch of {work.crowd}"
    return [
        Case("alone, again", alone),
        Case("alone, 2 threads", alone, 2),
        Case("shared prefix", children),
        Case(f"{batch}, shared, 1 thread", crowd),
        Case(f"{batch}, shared, 2 threads", crowd, 2),
        Case(f"{batch}, unshared, 1 thread", copies),
        Case(f"{batch}, unshared, 2 threads", copies, 2),
        Case(f"{batch}, other prompts, 2 threads", strangers, 2),
        *(
            Case(f"fork order {number}", in_order(number), 1 + number % 2)
            for number in range(1, FORK_ORDERS + 1)
        ),
        Case("pre-empted and resumed", preempted, 2, options={"kv_tokens": work.tight_pool_tokens}),
        *(
            Case(f"chunks of {size} tokens", children, 2, options={"max_batch_tokens": size})
            for size in (work.watched, 17, 33)
        ),
        *(Case(f"isa {isa}", children, 2, options={"isa": isa}) for isa in _C.available_isas()),
    ]


def matrix(checkpoint: Checkpoint, work: Workload, form: Format) -> Iterator[tuple[Case, bool]]:
    """Each case, and whether it equals the reference."""

    def open_engine(options: dict[str, Any]) -> Engine:
        room = {"kv_tokens": work.pool_tokens, "max_seq_len": work.prefix + work.suffix + 2}
        return Engine(checkpoint, **(room | form.options | options))

    by_options: dict[str, list[Case]] = {}
    for case in cases(work):
        by_options.setdefault(repr(case.options), []).append(case)
    expected: Trace | None = None
    for group in by_options.values():
        engine = open_engine(group[0].options)
        if expected is None:
            expected = Case("alone", alone).run(engine, work)
        for case in group:
            yield case, case.run(engine, work).equals(expected)


def table(checkpoint: Checkpoint, work: Workload) -> Iterator[dict[str, str | int | bool]]:
    """A row a case. A weight format's column is about all KV formats."""
    equal: dict[str, dict[Format, bool]] = {}
    for form in FORMATS:
        for case, same in matrix(checkpoint, work, form):
            equal.setdefault(case.name, {})[form] = same
    for name, by_format in equal.items():
        row: dict[str, str | int | bool] = {"case": name}
        for dtype in dict.fromkeys(form.dtype for form in by_format):
            row[dtype] = all(same for form, same in by_format.items() if form.dtype == dtype)
        row["logits"] = len(by_format) * work.watched * work.suffix
        row["equal"] = all(by_format.values())
        if not row["equal"]:
            row["unequal"] = "; ".join(str(form) for form, same in by_format.items() if not same)
        yield row


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    # A block begins while both sample, or nobody would have to be put out for it.
    short, long = Workload(42, 12, watched=2), Workload(70, 24, watched=4)
    works = {"reasoner": short} if args.quick else {"reasoner": long, "smollm2": short}
    report = Report("equality", {"quick": args.quick, "kv_dtypes": ", ".join(KV_DTYPES)})
    for name, work in works.items():
        for row in table(open_checkpoint(name), work):
            report.add(model=name, **row)
    report.finish(args.json)
    if not all(row["equal"] for row in report.rows):
        sys.exit("some cases are unequal")


if __name__ == "__main__":
    main()
