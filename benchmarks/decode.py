"""Tokens per second of many branches over one prefix, the engine and its peers in one run.

`python -m benchmarks.decode [--quick] [--peers transformers] [--json PATH]`

All contestants decode the same prompt greedily first; the run stops if their tokens differ. Then
they take turns, and the median counts. `decode_tokens_per_s` covers the steps after the first
token of each branch, so that nobody pays for the prompt; `prefill_tokens_per_s` is the prompt
alone, once. transformers gets the prompt's keys computed once and repeated for all rows: what
`generate(num_return_sequences=n)` does after its own, n-fold prefill.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.contestant import Contestant, Run, Workload
from benchmarks.report import Report, argument_parser
from benchmarks.transformers_peer import TransformersPeer
from parallel_decode.engine import Engine, SamplingParams, StepStats

TEXT = (
    "A branch of the river left the town behind and ran between low hills, where the old mill "
    "stood with its wheel at rest. Children came down the path in the evening to throw stones at "
    "the water, and the miller's dog watched them from the wall without a sound. "
)


class EngineContestant:
    """This engine."""

    name = "parallel_decode"

    def __init__(self, model: str, dtype: str, threads: int, kv_tokens: int) -> None:
        self.dtype = dtype
        self.engine = Engine.from_pretrained(
            model, dtype=dtype, threads=threads, kv_tokens=kv_tokens
        )

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        root = self.engine.prefill(prompt)
        self.engine.extend(
            root, SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        )
        tokens = root.output_tokens
        self.engine.prune(root)
        return tokens

    def run(self, prompt: list[int], work: Workload) -> Run:
        engine = self.engine
        engine.clear_prefixes()
        start = time.perf_counter()
        root = engine.prefill(prompt)
        run = Run(time.perf_counter() - start)
        kids = engine.fork(root, work.branches)

        def note(stats: StepStats) -> None:
            run.token_times.append(time.perf_counter())

        stop = engine.observe(note)
        engine.extend(kids, SamplingParams(max_tokens=work.suffix + 1, ignore_eos=True))
        stop()
        run.kv_bytes = engine.blocks_in_use * engine.cache.block_size * engine.cache.bytes_per_token
        engine.prune([root, *kids])
        return run


PEERS: dict[str, Callable[..., Contestant]] = {"transformers": TransformersPeer}


def check_agreement(contestants: list[Contestant], prompt: list[int], num_tokens: int) -> None:
    """All contestants of one precision must continue the prompt with the same tokens."""
    answers = {c.name: c.greedy(prompt, num_tokens) for c in contestants if c.dtype == "float32"}
    if len({tuple(tokens) for tokens in answers.values()}) > 1:
        raise SystemExit(f"greedy tokens differ, nothing was timed: {answers}")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)}; comma-separated")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtypes", default="float32", help="comma-separated")
    parser.add_argument("--branches", help="comma-separated; 32 if --quick, else 1,4,16,32,64")
    parser.add_argument("--prefix", type=int, default=1024, help="tokens of the shared prompt")
    parser.add_argument("--suffix", type=int, help="timed steps; 16 if --quick, else 32")
    parser.add_argument("--rounds", type=int, help="turns of each; 3 if --quick, else 5")
    args = parser.parse_args()
    peers = [name for name in args.peers.split(",") if name]
    for name in peers:
        if name not in PEERS:
            parser.error(f"no peer {name!r}; there are {', '.join(PEERS)}")
    torch.set_num_threads(args.threads)
    counts = args.branches or ("32" if args.quick else "1,4,16,32,64")
    suffix = args.suffix or (16 if args.quick else 32)
    works = [Workload(int(count), args.prefix, suffix) for count in counts.split(",")]
    rounds = args.rounds or (3 if args.quick else 5)
    report = Report(
        "decode",
        {
            "model": args.model,
            "threads": args.threads,
            "rounds": rounds,
            "quick": args.quick,
            "sampling": "temperature 1, no end of sequence",
        },
        peers=tuple(peers),
    )
    kv_tokens = 2048 + max(w.prefix + w.branches * (w.suffix + 32) for w in works)
    for dtype in args.dtypes.split(","):
        contestants: list[Contestant] = [
            EngineContestant(args.model, dtype, args.threads, kv_tokens),
            *(PEERS[name](args.model, dtype) for name in peers),
        ]
        ours = contestants[0]
        assert isinstance(ours, EngineContestant)
        ids = ours.engine.tokenizer.encode(TEXT * 40)
        check_agreement(contestants, ids[:200], 8 if args.quick else 32)
        for work in works:
            runs: dict[str, list[Run]] = {c.name: [] for c in contestants}
            for _ in range(rounds):
                for contestant in contestants:
                    runs[contestant.name].append(contestant.run(ids[: work.prefix], work))
            rates = {
                name: float(np.median([r.decode_rate(work.branches) for r in of_one]))
                for name, of_one in runs.items()
            }
            for contestant in contestants:
                of_one = runs[contestant.name]
                prefill = float(np.median([r.prefill_seconds for r in of_one]))
                report.add(
                    engine=contestant.name,
                    dtype=dtype,
                    branches=work.branches,
                    prefix=work.prefix,
                    suffix=work.suffix,
                    decode_tokens_per_s=rates[contestant.name],
                    prefill_tokens_per_s=work.prefix / prefill,
                    kv_bytes=of_one[-1].kv_bytes,
                    ratio_to_parallel_decode=rates[contestant.name] / rates[ours.name],
                )
    report.finish(args.json)


if __name__ == "__main__":
    main()
