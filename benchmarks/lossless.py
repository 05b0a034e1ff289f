"""Speculation changes no token and no law, with every drafter, at full size.

`python -m benchmarks.lossless [--quick] [--json PATH]`

"greedy": the outputs to 1,000 prompts with each drafter, shape of drafts and number of branches at
a time, against plain decoding, token by token. "chi-square": the first three tokens of 20,000 runs
against their exact law, which plain prefills give. "match" is the rule for a speculator's drafts;
by the others trees are verified that a caller brings: what a drafter thinks most probable, or what
the draft model has drawn, siblings "apart" from each other or none of them twice.

`equal`: the same outputs, or no evidence against the law at the level of 1e-4. A planted bug has to
be found out. `--threads`: that many processes share the work, with one thread each.
"""

import functools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from rich.progress import track

from benchmarks.bundled_drafters import NODES, BundledDrafters
from benchmarks.first_tokens import LEVEL, PARAMS, QUESTION, FirstTokens, Runs, all_runs
from benchmarks.report import Report, Value, argument_parser
from parallel_decode import Engine, SamplingParams
from parallel_decode.tasks import load_split

BRANCHES = (1, 16, 64)
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@dataclass(frozen=True)
class Greedy:
    drafter: str
    shape: str
    branches: int


@functools.cache
def bundled() -> BundledDrafters:
    """Of this process."""
    return BundledDrafters(threads=1)


@functools.cache
def first_tokens() -> FirstTokens:
    return FirstTokens(bundled())


def greedy_outputs(engine: Engine, prompts: Sequence[str], branches: int) -> list[list[int]]:
    """So many prompts at a time."""
    outputs = []
    for first in range(0, len(prompts), branches):
        roots = [engine.prefill(prompt) for prompt in prompts[first : first + branches]]
        engine.extend(roots, GREEDY)
        outputs += [root.output_tokens for root in roots]
        engine.prune(roots)
        engine.clear_prefixes()
    return outputs


@functools.cache
def plain_outputs(num_prompts: int) -> tuple[list[str], list[list[int]]]:
    prompts = [problem.question for problem in load_split("test", num_prompts)]
    return prompts, greedy_outputs(bundled().engine, prompts, max(BRANCHES))


def greedy_row(job: Greedy, num_prompts: int) -> dict[str, Value]:
    drafters = bundled()
    prompts, expected = plain_outputs(num_prompts)
    before = drafters.engine.usage.accepted_tokens
    with drafters.speculating(drafters.speculator(job.drafter, job.shape)):
        outputs = greedy_outputs(drafters.engine, prompts, job.branches)
    accepted = drafters.engine.usage.accepted_tokens - before
    different = sum(one != other for one, other in zip(outputs, expected, strict=True))
    return {
        "check": "greedy",
        "rule": "match",
        "drafter": job.drafter,
        "shape": job.shape,
        "branches": job.branches,
        "runs": num_prompts,
        "accepted_per_token": round(accepted / sum(map(len, expected)), 3),
        "different": different,
        "equal": different == 0,
        "as_it_must_be": different == 0,
    }


def row_of(job: Greedy | Runs, count: int) -> dict[str, Value]:
    if isinstance(job, Greedy):
        return greedy_row(job, count)
    return first_tokens().row(job, count)


def all_jobs(drafters: BundledDrafters) -> list[Greedy | Runs]:
    return [
        *all_runs(drafters.makers),
        *(
            Greedy(drafter, shape, branches)
            for branches in reversed(BRANCHES)
            for drafter in drafters.makers
            for shape in drafters.shapes(drafter)
        ),
    ]


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    num_prompts, num_runs = (20, 800) if args.quick else (1000, 20_000)
    report = Report(
        "lossless",
        {
            "quick": args.quick,
            "threads": args.threads,
            "model": "reasoner",
            "greedy_tokens": GREEDY.max_tokens,
            "static_nodes": NODES,
            "question": QUESTION.strip(),
            "temperature": PARAMS.temperature,
            "top_p": PARAMS.top_p,
            "level": LEVEL,
        },
    )
    jobs = all_jobs(bundled())
    # The engines' threads do not outlive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.threads, mp_context=spawn) as pool:
        futures = {
            pool.submit(row_of, job, num_runs if isinstance(job, Runs) else num_prompts): job
            for job in jobs
        }
        rows: dict[Greedy | Runs, dict[str, Value]] = {}
        for future in track(as_completed(futures), "jobs", len(jobs), transient=True):
            rows[futures[future]] = future.result()
            report.rows = [rows[job] for job in jobs if job in rows]
            report.save(args.json)
    report.finish(args.json)
    wrong = [row for row in report.rows if not row["as_it_must_be"]]
    if wrong:
        raise SystemExit(f"{len(wrong)} rows are not as they must be, the first: {wrong[0]}")


if __name__ == "__main__":
    main()
