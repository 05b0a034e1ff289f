"""What the controller of speculation decides, without the noise of a machine.

`python -m benchmarks.controller [--quick] [--json PATH]`

Tokens, drafts and acceptance are those of the reasoner; time is virtual: durations come from a
formula with made-up constants and pseudo-random noise, so that a run repeats to the last digit and
shows what a clock can't, whether decoding with a drafter takes more than 1.02 times as long as
without. `machine`: "light" has cheap rows and calls, "heavy" dear ones.
`speedup` is that of the branches that are compared, `speedup_with_finished`
that of all, those included that were decoded before for their siblings to draft from.
`drafted_steps`, `tokens_per_step`, `acceptance`: see `benchmarks.speculation`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.progress import track

from benchmarks.report import Report, argument_parser
from benchmarks.virtual_time import TimedDrafter, TimedSpeculator, VirtualClock, VirtualMachine
from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Drafter
from parallel_decode.speculation import (
    DraftModelDrafter,
    EagleDrafter,
    LookaheadDrafter,
    MedusaDrafter,
    Speculation,
    StaticSpeculation,
    SuffixDrafter,
    TrainedHeads,
)
from parallel_decode.tasks import load_split

LIGHT = VirtualMachine(
    "light",
    fixed=230e-6,
    row=8.5e-6,
    branch=12e-6,
    call=15e-6,
    per_branch=4e-6,
    per_node=0.3e-6,
    level=25e-6,
    level_row=2.5e-6,
    noise=0.08,
)
HEAVY = VirtualMachine(
    "heavy",
    fixed=450e-6,
    row=22e-6,
    branch=45e-6,
    call=40e-6,
    per_branch=20e-6,
    per_node=1e-6,
    level=40e-6,
    level_row=7e-6,
    noise=0.08,
)
MACHINES = (LIGHT, HEAVY)
STATIC_NODES = 8
MAX_TOKENS = 200

Makers = dict[str, tuple[str, Callable[[], Drafter]]]
"""Levels of a model that a drafter computes, and how it is made."""


def drafters(engine: Engine, draft: Engine) -> Makers:
    heads = TrainedHeads.load(engine.name, engine.config)
    return {
        "suffix": ("none", SuffixDrafter),
        "lookahead": ("none", LookaheadDrafter),
        "draft model": ("each", lambda: DraftModelDrafter(draft)),
        "eagle": ("each", lambda: EagleDrafter(engine, heads)),
        "medusa": ("one", lambda: MedusaDrafter(engine, heads)),
    }


def run(
    engine: Engine, prompts: list[list[int]], branches: int, finished: int, timed: TimedSpeculator
) -> tuple[float, float, int, list[list[int]]]:
    """Seconds of the branches and of all, steps of the branches, and what they say."""
    params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS)
    clock, engine.speculator = timed.clock, timed
    began, seconds, steps, tokens = clock.now, 0.0, 0, []
    for prompt in prompts:
        root = engine.prefill(prompt)
        before = engine.fork(root, finished) if finished else []
        if before:
            engine.extend(before, params)
        kids = engine.fork(root, branches)
        timed.end_step()
        start, first = clock.now, timed.steps
        engine.extend(kids, params)
        timed.end_step()
        seconds += clock.now - start
        steps += timed.steps - first
        tokens += [kid.output_tokens for kid in kids]
        engine.prune([root, *before, *kids])
        engine.clear_prefixes()
    engine.speculator = None
    return seconds, clock.now - began, steps, tokens


def parse_args() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--questions", type=int, default=12, help="of each kind")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    questions = 2 if args.quick else args.questions
    report = Report(
        "controller", {"threads": args.threads, "questions": questions, "quick": args.quick}
    )
    engine = Engine.from_pretrained("reasoner", dtype="float32", threads=args.threads)
    draft = Engine.from_pretrained("reasoner-draft", threads=args.threads)
    makers = drafters(engine, draft)
    problems = load_split("test", 400)
    shapes = [
        (task, branches, finished)
        for task in sorted({problem.task for problem in problems})
        for branches, finished in ((1, 0), (16, 0), (16, 4), (16, 16))
    ]
    machines = MACHINES[:1] if args.quick else MACHINES
    todo = [(machine, *shape) for machine in machines for shape in shapes]
    for machine, task, branches, finished in track(todo, description="controller", transient=True):
        texts = [p.question for p in problems if p.task == task][:questions]
        prompts = [engine.tokenizer.encode(text, add_bos=None) for text in texts]
        plain = TimedSpeculator(VirtualClock(machine))
        base, whole, base_steps, said = run(engine, prompts, branches, finished, plain)
        # Whoever drafts from siblings is asked about these.
        names = ["suffix"] if finished else list(makers)
        for name, shape in [*((name, "dynamic") for name in names), ("suffix", "static")]:
            clock = VirtualClock(machine)
            levels, make = makers[name]
            drafter = TimedDrafter(make(), levels, clock)
            speculation: Speculation | StaticSpeculation = (
                StaticSpeculation(drafter, STATIC_NODES)
                if shape == "static"
                else Speculation(drafter, machine.costs, clock=clock)
            )
            timed = TimedSpeculator(clock, speculation, drafter)
            seconds, of_all, steps, tokens = run(engine, prompts, branches, finished, timed)
            if tokens != said:
                raise SystemExit(f"{task}, {branches} branches: {name} changes tokens")
            stats = speculation.stats
            report.add(
                machine=machine.name,
                category=task,
                branches=branches,
                finished_siblings=finished,
                drafter=name,
                shape=f"static, {STATIC_NODES} nodes" if shape == "static" else shape,
                steps=steps,
                steps_without=base_steps,
                drafted_steps=stats.drafted_steps,
                tokens_per_step=round(stats.tokens_per_step, 2),
                acceptance=round(stats.acceptance, 3),
                speedup=round(base / seconds, 3),
                speedup_with_finished=round(whole / of_all, 3),
            )
    report.finish(args.json)


if __name__ == "__main__":
    main()
