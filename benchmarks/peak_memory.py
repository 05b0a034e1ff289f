"""The most memory that a process takes for 64 branches, against its weights and keys.

`python -m benchmarks.peak_memory [--quick] [--json PATH]`

Each row is a process of its own. `peak_bytes` is its largest resident set less what it held before
the engine was made (the interpreter and its libraries, `base_bytes`). The floor is the weights as
stored and the KV cache with the prefix once and each suffix once.
"""

import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.formats import Format
from benchmarks.report import Report, argument_parser
from parallel_decode.engine import Engine, SamplingParams

BRANCHES = 64
FORMATS = (Format("int8", "float32"), Format("int8", "float16"), Format("int4", "int8"))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(
    pipe: Connection, model: str, form: Format, threads: int, prefix: int, suffix: int
) -> None:
    base = resident_bytes()
    engine = Engine.from_pretrained(model, threads=threads, max_seq_len=8192, **form.options)
    rng = np.random.default_rng(0)
    root = engine.prefill(rng.integers(100, engine.config.vocab_size, prefix).tolist())
    kids = engine.fork(root, BRANCHES)
    engine.extend(kids, SamplingParams(max_tokens=suffix, ignore_eos=True))
    if any(len(kid.output_tokens) != suffix for kid in kids):
        raise AssertionError("the branches must be of full length")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kv_floor = (prefix + BRANCHES * suffix) * engine.cache.bytes_per_token
    pipe.send((base, peak, engine.model.weight_bytes, int(kv_floor)))


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    prefix, suffix = (1024, 32) if args.quick else (4096, 128)
    report = Report(
        "peak_memory", {"quick": args.quick, "threads": args.threads, "branches": BRANCHES}
    )
    # Not a fork of this process: it would begin with the memory that this one has.
    processes = multiprocessing.get_context("spawn")
    for form in FORMATS[1:2] if args.quick else FORMATS:
        here, there = processes.Pipe(duplex=False)
        child = processes.Process(
            target=measure, args=(there, "smollm2", form, args.threads, prefix, suffix)
        )
        child.start()
        there.close()
        base, peak, weights, kv_floor = here.recv()
        child.join()
        report.add(
            model="smollm2",
            dtype=form.dtype,
            kv_dtype=form.kv_dtype,
            prefix=prefix,
            suffix=suffix,
            base_bytes=base,
            peak_bytes=peak - base,
            weight_bytes=weights,
            kv_bytes_floor=kv_floor,
            ratio_to_floor=(peak - base) / (weights + kv_floor),
        )
    report.finish(args.json)


if __name__ == "__main__":
    main()
