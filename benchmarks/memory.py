"""What branches cost: KV bytes against the floor, the time of a fork, and blocks after use.

The floor holds the prefix once and each suffix once, with no rounding to blocks.
`python -m benchmarks.memory [--quick] [--json PATH]`
"""

import random
import time

import numpy as np

from benchmarks.report import Report, argument_parser
from parallel_decode.engine import Branch, Engine, SamplingParams

BRANCHES = 64
# Lengths that fill blocks, and lengths that leave one open in the prefix and in each suffix.
LENGTHS = ((1024, 128), (1000, 100))
FORK_PREFIX, FORK_CHILDREN, FORK_CALLS = 4096, 64, 30
RANDOM_OPERATIONS = 10_000


def prompt(engine: Engine, num_tokens: int, seed: int) -> list[int]:
    """Random ordinary tokens."""
    ordinary = [t for t in range(engine.config.vocab_size) if t not in engine.tokenizer.special_ids]
    return random.Random(seed).choices(ordinary, k=num_tokens)


def measure_kv(engine: Engine, prefix: int, suffix: int) -> dict[str, int | float]:
    """64 branches, each with its own suffix, over one prefix."""
    root = engine.prefill(prompt(engine, prefix, seed=1))
    kids = engine.fork(root, BRANCHES)
    engine.extend(kids, SamplingParams(max_tokens=suffix, ignore_eos=True))
    engine.score(kids)
    stored = {tuple(kid.output_tokens) for kid in kids}
    if any(len(kid.output_tokens) != suffix for kid in kids) or len(stored) < BRANCHES // 2:
        raise AssertionError("the branches must be of full length and differ from each other")
    per_token = engine.cache.bytes_per_token
    used = engine.blocks_in_use * engine.cache.block_size * per_token
    floor = (prefix + BRANCHES * suffix) * per_token
    engine.prune([root, *kids])
    return {"kv_bytes": used, "kv_bytes_floor": floor, "kv_bytes_ratio": used / floor}


def measure_fork(engine: Engine) -> float:
    """Median time of one call that makes 64 children, in microseconds."""
    root = engine.prefill(prompt(engine, FORK_PREFIX, seed=2))
    before = engine.blocks_in_use
    times = []
    for _ in range(FORK_CALLS):
        start = time.perf_counter()
        kids = engine.fork(root, FORK_CHILDREN)
        times.append((time.perf_counter() - start) * 1e6)
        if engine.blocks_in_use != before:
            raise AssertionError("a fork must take no block")
        engine.prune(kids)
    engine.prune(root)
    return float(np.median(times))


def exercise(engine: Engine, num_operations: int) -> int:
    """Random operations on a few live trees; then all branches go -> blocks still in use."""
    rng = random.Random(3)
    live: list[Branch] = []
    for _ in range(num_operations):
        action = rng.choice(["prefill", "fork", "fork", "extend", "extend", "rollback", "prune"])
        if not live or action == "prefill":
            live.append(engine.prefill(prompt(engine, rng.randint(1, 60), rng.randint(0, 5))))
            continue
        branch = rng.choice(live)
        if action == "fork":
            at = rng.randint(1, branch.num_tokens)
            live += engine.fork(branch, rng.randint(1, 3), at=at)
        elif action == "extend":
            length = rng.randint(1, 6)
            if branch.num_tokens + length < 200:
                engine.extend(branch, SamplingParams(max_tokens=length, ignore_eos=True))
        elif action == "rollback":
            engine.rollback(branch, rng.randint(1, branch.num_tokens))
        while action == "prune" or len(live) > 24:
            victim = live.pop(rng.randrange(len(live)))
            engine.prune(victim)
            action = ""
    engine.prune(live)
    return engine.blocks_in_use


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    names = ["reasoner"] if args.quick else ["reasoner", "smollm2"]
    report = Report(
        "memory",
        {
            "quick": args.quick,
            "threads": args.threads,
            "branches": BRANCHES,
            "fork_prefix": FORK_PREFIX,
            "fork_children": FORK_CHILDREN,
            "random_operations": RANDOM_OPERATIONS,
        },
    )
    for name in names:
        engine = Engine.from_pretrained(
            name, threads=args.threads, max_seq_len=FORK_PREFIX + 64, kv_tokens=1 << 15
        )
        rows = [measure_kv(engine, prefix, suffix) for prefix, suffix in LENGTHS]
        fork_us = measure_fork(engine)
        # The allocator does not see the model: the small one is exercised, the large one is not.
        left = exercise(engine, RANDOM_OPERATIONS) if name == "reasoner" else engine.blocks_in_use
        engine.clear_prefixes()
        for (prefix, suffix), row in zip(LENGTHS, rows, strict=True):
            report.add(
                model=name,
                prefix=prefix,
                suffix=suffix,
                **row,
                fork_us=fork_us,
                blocks_in_use_after=left,
                blocks_held_without_prefixes=engine.cache.num_used,
            )
    report.finish(args.json)


if __name__ == "__main__":
    main()
