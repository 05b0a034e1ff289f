"""What methods cost over the engine: 64 questions x 16 branches in one batch, each method against
the same branches decoded by the bare primitives.

`python -m benchmarks.methods [--quick] [--json PATH]`. All run in turns; a rate is that of a whole
run, with its prompts and its end, and a ratio is the median over rounds of the ratio to the bare
run of the same round. A step search decodes fewer branches at once where some wait for their
siblings' steps, and a probe computes tokens that it does not generate: both are in the rates, and
`branches_per_step` and `computed_tokens` say how much of it there was.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.report import Report, argument_parser
from parallel_decode.engine import Engine, Extend, Fork, Prefill, SamplingParams, Solver, Steps
from parallel_decode.reasoning import (
    CISC,
    DVTS,
    BestOfN,
    DeepConf,
    Rebase,
    SelfConsistency,
    Solution,
    extract,
    likelihood,
)
from parallel_decode.tasks import load_split

BRANCHES = 16
DRAFTING = "self-consistency, speculation auto"
SEARCHES = ("dvts", "rebase")
CHECKED = 4
"""Questions whose answers are compared before anything is timed."""


class Run(NamedTuple):
    """One pass over all questions; `branches` is the mean over steps."""

    seconds: float
    generated_tokens: int
    computed_tokens: int
    branches: float

    @property
    def rate(self) -> float:
        return self.generated_tokens / self.seconds

    @property
    def computed_rate(self) -> float:
        return self.computed_tokens / self.seconds


def decode_bare(
    engine: Engine, questions: Sequence[str], params: SamplingParams
) -> list[list[list[int]]]:
    """The floor: what every sampling method asks of the engine, and nothing around it -> the tokens
    of each branch of each question."""

    def steps(question: str) -> Steps:
        branch = yield Prefill(question)
        kids = yield Fork(branch, BRANCHES)
        yield Extend(kids, params)
        return [kid.output_tokens for kid in kids]

    programs = [engine.submit(steps(question)) for question in questions]
    engine.wait(programs)
    return [program.result for program in programs]


def solve(engine: Engine, questions: Sequence[str], method: Solver) -> list[Solution]:
    solutions = engine.solve_many(questions, method)
    for solution in solutions:
        if isinstance(solution, Exception):
            raise solution
    return solutions


def check(
    engine: Engine, questions: Sequence[str], name: str, method: Solver, params: SamplingParams
) -> None:
    """Raises AssertionError where a method of samples has others than the bare branches, or where
    any method solves a question otherwise alone than in a batch."""
    together = solve(engine, questions, method)
    for question, solution in zip(questions, together, strict=True):
        [alone] = solve(engine, [question], method)
        assert alone.votes == solution.votes, name
        assert [path.tokens for path in alone.paths] == [p.tokens for p in solution.paths], name
    if name not in SEARCHES:
        paths = [[path.tokens for path in solution.paths] for solution in together]
        assert paths == decode_bare(engine, questions, params), name


def timed(
    engine: Engine, questions: Sequence[str], method: Solver | None, params: SamplingParams
) -> Run:
    """`method` None: the bare run."""
    widths: list[int] = []
    stop = engine.observe(lambda stats: widths.append(stats.num_branches))
    before, start = engine.usage, time.perf_counter()
    try:
        if method is None:
            decode_bare(engine, questions, params)
        else:
            solve(engine, questions, method)
    finally:
        stop()
    seconds, after = time.perf_counter() - start, engine.usage
    return Run(
        seconds,
        after.generated_tokens - before.generated_tokens,
        after.computed_tokens - before.computed_tokens,
        sum(widths) / len(widths),
    )


def contestants(params: SamplingParams) -> dict[str, Solver]:
    answer = extract.after("answer ")
    n = BRANCHES
    return {
        "self-consistency": SelfConsistency(n, params, answer, speculation=None),
        DRAFTING: SelfConsistency(n, params, answer),
        "best-of-n, likelihood": BestOfN(n, likelihood, params=params, extract=answer),
        "cisc, likelihood": CISC(n, likelihood, params=params, extract=answer),
        "cisc, P(True)": CISC(n, params=params, extract=answer),
        "deepconf": DeepConf(n, params=params, extract=answer),
        "dvts": DVTS(4, 4, params=params, extract=answer),
        "rebase": Rebase(n, params=params, extract=answer),
    }


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    num_questions, rounds = (16, 2) if args.quick else (64, 3)
    problems = load_split("test", num_questions, 0)
    questions = [problem.question for problem in problems]
    params = SamplingParams(max_tokens=320)
    engine = Engine.from_pretrained("reasoner", threads=args.threads)
    # What drafts for a method stays with its engine.
    drafting = Engine.from_pretrained("reasoner", threads=args.threads)
    for name, method in contestants(params).items():
        opened = drafting if name == DRAFTING else engine
        check(opened, questions[:CHECKED], name, method, params)
    methods: dict[str, Solver | None] = {"bare primitives": None, **contestants(params)}
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    timed(engine, questions, None, params)  # memory is touched for the first time
    timed(drafting, questions, methods[DRAFTING], params)
    names = list(methods)
    for number in range(rounds):
        first = number % len(names)  # nobody always runs behind the same neighbour
        for name in names[first:] + names[:first]:
            opened = drafting if name == DRAFTING else engine
            runs[name].append(timed(opened, questions, methods[name], params))
    report = Report(
        "methods",
        {
            "model": "reasoner",
            "threads": args.threads,
            "quick": args.quick,
            "questions": num_questions,
            "branches": BRANCHES,
            "rounds": rounds,
        },
    )
    bare = runs["bare primitives"]
    for name, own in runs.items():
        report.add(
            method=name,
            generated_tokens=own[0].generated_tokens,
            computed_tokens=own[0].computed_tokens,
            branches_per_step=own[0].branches,
            decode_tokens_per_s=median(run.rate for run in own),
            ratio_to_bare=median(run.rate / base.rate for run, base in zip(own, bare, strict=True)),
            computed_ratio_to_bare=median(
                run.computed_rate / base.computed_rate for run, base in zip(own, bare, strict=True)
            ),
        )
    report.finish(args.json)


if __name__ == "__main__":
    main()
