"""Tokens per second of many branches over one prefix, the engine and its peers in one run.

`python -m benchmarks.decode [--quick] [--peers llama.cpp,openvino,transformers] [--json PATH]`

First everybody continues one prompt greedily. All float32 must say the same, and so must the first
tokens of float16 and bfloat16; how long the others agree stands in the conditions. Then they take
turns, and the median counts. `decode_tokens_per_s` covers the steps after the first token of each
branch, so that nobody pays for the prompt; `prefill_tokens_per_s` is the prompt alone, once, each
node of a tree once. What is uneven is so in the peers' favour: llama.cpp draws its tokens for free
and takes each row in the best configuration that short trials found for it; transformers gets the
prompt's keys computed once and repeated for all rows, what `generate(num_return_sequences=n)` does
after its own, n-fold prefill, and has no rows in which that takes more than 4 GiB; and a peer's run
ends after `--seconds`, at shorter branches.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.contestant import BITS, Contestant, Run, Workload
from benchmarks.engine_contestant import EngineContestant
from benchmarks.llama_cpp_peer import FORMATS, LlamaCpp, LlamaCppContestant
from benchmarks.openvino_peer import OpenVinoContestant
from benchmarks.report import Report, Value, argument_parser
from benchmarks.transformers_peer import TransformersPeer

TEXT = (
    "A branch of the river left the town behind and ran between low hills, where the old mill "
    "stood with its wheel at rest. Children came down the path in the evening to throw stones at "
    "the water, and the miller's dog watched them from the wall without a sound. "
)
# The figure draws prefix 1,024 over branches, and 32 branches over prefixes.
FULL = (
    Workload(32, 1024, 64),
    Workload(32, 4096, 64),
    Workload(64, 4096, 64),
    Workload(64, 512, 64, levels=((4, 64), (4, 64))),
    Workload(1, 1024, 64),
    Workload(1, 2, 64),
    Workload(1, 512, 0),
    Workload(1, 1024, 0),
    *(Workload(branches, 1024, 64, in_table=False) for branches in (4, 16, 64)),
    *(Workload(32, prefix, 64, in_table=False) for prefix in (256, 512, 2048)),
)
QUICK = (Workload(32, 512, 12),)
ENGINES = "float32,float16:float16,int8:float16,int8:int8,int4:int8"
QUICK_ENGINES = "float32,int8:int8"
AGREEING_TOKENS = 8


# ---- who takes part ----


def llama_cpp_peers(args: argparse.Namespace) -> list[Contestant]:
    library = LlamaCpp(args.model, args.threads, args.quick)
    return [LlamaCppContestant(library, dtype) for dtype in FORMATS]


def openvino_peers(args: argparse.Namespace) -> list[Contestant]:
    dtypes = ("int4",) if args.quick else ("float16", "int8", "int4")
    return [OpenVinoContestant(args.model, dtype, args.threads) for dtype in dtypes]


def transformers_peers(args: argparse.Namespace) -> list[Contestant]:
    return [TransformersPeer(args.model, "float32")]


PEERS: dict[str, Callable[[argparse.Namespace], list[Contestant]]] = {
    "llama.cpp": llama_cpp_peers,
    "openvino": openvino_peers,
    "transformers": transformers_peers,
}
PACKAGES = {
    "llama.cpp": "llama-cpp-python",
    "openvino": "openvino-genai",
    "transformers": "transformers",
}


def engines(args: argparse.Namespace, works: Sequence[Workload]) -> list[EngineContestant]:
    kv_tokens = 2048 + max(w.stored + w.branches * (w.suffix + 32) for w in works)
    found = []
    for spec in args.engines.split(","):
        dtype, _, kv_dtype = spec.partition(":")
        found.append(
            EngineContestant(
                args.model,
                dtype,
                kv_dtype or "float32",
                threads=args.threads,
                kv_tokens=kv_tokens,
            )
        )
    return found


# ---- correctness ----


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    differs = (i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differs, min(len(one), len(other)))


def check_agreement(
    contestants: Sequence[Contestant], prompt: list[int], num_tokens: int
) -> dict[str, int]:
    """Label -> how many greedy tokens are those of the first float32 contestant.

    Raises:
        SystemExit: float32 does not agree to the end, or 16 bits not for AGREEING_TOKENS.
    """
    answers = {c.label: c.greedy(prompt, num_tokens) for c in contestants}
    exact = [c.label for c in contestants if (c.dtype, c.kv_dtype) == ("float32", "float32")]
    reference = answers[exact[0]] if exact else answers[contestants[0].label]
    lengths = {label: common_length(reference, tokens) for label, tokens in answers.items()}
    for contestant in contestants:
        needed = {32: num_tokens, 16: min(AGREEING_TOKENS, num_tokens)}
        bits = BITS[contestant.dtype]
        if contestant.kv_dtype != "float32":
            bits = min(bits, 16)
        if exact and lengths[contestant.label] < needed.get(bits, 0):
            raise SystemExit(f"greedy tokens differ, nothing was timed: {answers}")
    return lengths


# ---- rows ----


def measure(
    contestants: Sequence[Contestant],
    ids: list[int],
    work: Workload,
    rounds: int,
    seconds: float,
) -> list[dict[str, Value]]:
    """One row a contestant, the median of rounds in which all take turns."""
    contestants = [contestant for contestant in contestants if contestant.takes(work)]
    for contestant in contestants:
        contestant.prepare(ids, work)
    runs: dict[str, list[Run]] = {c.label: [] for c in contestants}
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            runs[contestant.label].append(contestant.run(ids, work, seconds))
    return compared([row_of(c, work, runs[c.label]) for c in contestants])


def row_of(contestant: Contestant, work: Workload, runs: Sequence[Run]) -> dict[str, Value]:
    prefill = float(np.median([run.prefill_seconds for run in runs]))
    rates = [rate for run in runs if (rate := run.decode_rate(work.branches)) is not None]
    return {
        "engine": contestant.name,
        "dtype": contestant.dtype,
        "kv_dtype": contestant.kv_dtype,
        "branches": work.branches,
        "prefix": work.prefix,
        "tree": work.tree,
        "suffix": work.suffix,
        "decode_tokens_per_s": float(np.median(rates)) if rates else None,
        "prefill_tokens_per_s": work.stored / prefill,
        "kv_bytes": runs[-1].kv_bytes or None,
        "configuration": contestant.configuration,
        "in_table": work.in_table,
    }


def compared(rows: list[dict[str, Value]]) -> list[dict[str, Value]]:
    """Adds the ratios: to llama.cpp's best and to its best of the same width; else to ours."""
    measured = "decode_tokens_per_s" if rows[0]["suffix"] else "prefill_tokens_per_s"

    def best(bits: int | None = None) -> float | None:
        rates = [
            float(row[measured] or 0)
            for row in rows
            if row["engine"] == "llama.cpp" and bits in (None, BITS[str(row["dtype"])])
        ]
        return max(rates, default=None)

    any_width = best()
    for row in rows:
        rate = float(row[measured] or 0)
        if any_width is None:
            row["ratio_to_parallel_decode"] = rate / float(rows[0][measured] or 1)
            continue
        same = best(BITS[str(row["dtype"])])
        row["ratio_to_llama_cpp"] = rate / any_width
        row["ratio_to_llama_cpp_same_width"] = rate / same if same else None
    return rows


# ---- the command ----


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def workloads(args: argparse.Namespace) -> Sequence[Workload]:
    """Those of the run; of the command line, where it names any."""
    if not (args.branches or args.prefix):
        return QUICK if args.quick else FULL
    return [
        Workload(branches, prefix, 64 if args.suffix is None else args.suffix)
        for branches in numbers(args.branches or "32")
        for prefix in numbers(args.prefix or "1024")
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)}; comma-separated")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--engines",
        help=f"weights[:keys and values], comma-separated; {QUICK_ENGINES} if --quick, else"
        f" {ENGINES}",
    )
    parser.add_argument("--branches", help="other rows than the usual ones; comma-separated")
    parser.add_argument("--prefix", help="tokens of the shared prompt; comma-separated")
    parser.add_argument("--suffix", type=int, help="timed steps of such rows, 64; 0: prompt alone")
    parser.add_argument("--rounds", type=int, help="turns of each; 2 if --quick, else 3")
    parser.add_argument("--seconds", type=float, default=15, help="of a peer's decoding, a turn")
    args = parser.parse_args()
    peers = [name for name in args.peers.split(",") if name]
    for name in peers:
        if name not in PEERS:
            parser.error(f"no peer {name!r}; there are {', '.join(PEERS)}")
    torch.set_num_threads(args.threads)
    args.engines = args.engines or (QUICK_ENGINES if args.quick else ENGINES)
    works = workloads(args)
    rounds = args.rounds or (2 if args.quick else 3)
    ours = engines(args, works)
    contestants = [*ours, *(one for name in peers for one in PEERS[name](args))]
    text = ours[0].engine.tokenizer.encode(TEXT)
    ids = text * (1 + max(w.context for w in works) // len(text))
    num_tokens = AGREEING_TOKENS if args.quick else 32
    lengths = check_agreement(contestants, (text * 4)[:200], num_tokens)
    agreement = ", ".join(f"{label} {length}" for label, length in lengths.items())
    command = f"python -m benchmarks.decode --engines {args.engines}"
    report = Report(
        "decode",
        {
            "model": args.model,
            "threads": args.threads,
            "rounds": rounds,
            "peer_seconds": args.seconds if peers else None,
            "quick": args.quick,
            "sampling": "temperature 1, no end of sequence",
            "agreement": f"of {num_tokens} greedy tokens with float32: {agreement}",
            "command": f"{command} --peers {','.join(peers)}" if peers else command,
        },
        peers=tuple(PACKAGES[name] for name in peers),
    )
    for work in works:
        for row in measure(contestants, ids, work, rounds, args.seconds):
            report.add(**row)
        report.save(args.json)
    report.finish(args.json)


if __name__ == "__main__":
    main()
