"""What guessing ahead is worth: decoding with each drafter against the same engine without.

`python -m benchmarks.speculation [--quick] [--json PATH] [--models smollm2,reasoner]`

A row is a drafter on one category of prompts. Both sides decode the same prompts in turns, and must
give the same tokens. A drafter starts each round knowing nothing, so that no round helps the next;
what it learns within a round, it learns from that round's own branches. "layers 0 1 3": those that
`choose_layers` expects most of. "jacobi": lookahead of n = 2. `tokens_per_step` and
`acceptance`: in the steps with drafts, of a branch and of a node. `draft_cost`: part of all time.
`predicted_speedup`: what the controller expected of the steps in which it asked, and 1 elsewhere.
`shape`: what the controller chooses, or the same number of nodes for each branch in every step.
`finished_siblings`: branches of the same prompt that were decoded before, not in the time.
`measured_speedup`: the median over rounds; `lowest` and `highest` round beside it.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.progress import track

from benchmarks.report import Report, Value, argument_parser
from benchmarks.speculation_prompts import PROMPTS
from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Branch, Drafter
from parallel_decode.speculation import (
    DraftModelDrafter,
    EagleDrafter,
    LookaheadDrafter,
    MedusaDrafter,
    NGramDrafter,
    SkipLayersDrafter,
    Speculation,
    StaticSpeculation,
    StepCosts,
    SuffixDrafter,
    TrainedHeads,
    choose_layers,
)
from parallel_decode.tasks import load_split

JACOBI_WINDOW = 10
STATIC, STATIC_NODES = ", static", 8
CHOOSING = (
    "Write a short story about a dog that finds a map.",
    "Why is the sky blue? Explain it to a child.",
)
"""By what the model says to these its layers are chosen; none of them is measured."""


@dataclass(frozen=True)
class Work:
    """Prompts of one category, decoded one after the other in `branches` branches each, after so
    many `finished` ones of the same prompt."""

    model: str
    category: str
    prompts: tuple[Sequence[int], ...]
    branches: int
    temperature: float
    max_tokens: int
    finished: int = 0


@dataclass(frozen=True)
class Outcome:
    seconds: float
    steps: int
    tokens: list[list[int]]


def decode(engine: Engine, work: Work) -> Outcome:
    params = SamplingParams(temperature=work.temperature, max_tokens=work.max_tokens)
    seconds, steps, tokens = 0.0, engine.usage.forward_steps, []
    for prompt in work.prompts:
        seen = engine.usage.forward_steps
        root = engine.prefill(prompt)
        before: list[Branch] = engine.fork(root, work.finished) if work.finished else []
        if before:
            engine.extend(before, params)
            # Their steps are not those that are compared.
            steps += engine.usage.forward_steps - seen
        branches: list[Branch] = engine.fork(root, work.branches)
        # The first step computes the prompt's last token and is no step of decoding.
        start = time.perf_counter()
        engine.extend(branches, params)
        seconds += time.perf_counter() - start
        tokens += [branch.output_tokens for branch in branches]
        engine.prune([root, *before, *branches])
        engine.clear_prefixes()
    return Outcome(seconds, engine.usage.forward_steps - steps, tokens)


def works(model: str, engine: Engine, quick: bool) -> Iterator[Work]:
    if model == "smollm2":
        for category, texts in PROMPTS.items():
            chats = tuple(
                tuple(engine.chat_prompt([{"role": "user", "content": text}])) for text in texts
            )
            chats = chats[:1] if quick else chats
            yield Work(model, category, chats, 1, 0.0, 64 if quick else 192)
            if not quick:
                yield Work(model, category, chats, 8, 0.8, 96)
        return
    problems = load_split("test", 400)
    for task in sorted({problem.task for problem in problems}):
        questions = [p.question for p in problems if p.task == task][: 1 if quick else 12]
        prompts = tuple(tuple(engine.tokenizer.encode(q, add_bos=None)) for q in questions)
        for branches, temperature in ((1, 0.0), (1, 1.0), (16, 1.0)):
            yield Work(model, task, prompts, branches, temperature, 200)
        for finished in (4,) if quick else (4, 16, 48):
            yield Work(model, task, prompts, 16, 1.0, 200, finished)


def drafters(
    engine: Engine, draft: Engine | None, kept: Sequence[int]
) -> dict[str, Callable[[], Drafter]]:
    """kept: layers of the engine's model that draft."""
    found: dict[str, Callable[[], Drafter]] = {
        "suffix": SuffixDrafter,
        "suffix" + STATIC: SuffixDrafter,
        "n-gram": NGramDrafter,
        "lookahead": LookaheadDrafter,
        "jacobi": lambda: LookaheadDrafter(window=JACOBI_WINDOW, n=2, max_guesses=0),
        f"layers {' '.join(map(str, kept))}": lambda: SkipLayersDrafter(engine, kept),
    }
    if draft is not None:
        heads = TrainedHeads.load(engine.name, engine.config)
        found["draft model"] = lambda: DraftModelDrafter(draft)
        found["eagle"] = lambda: EagleDrafter(engine, heads)
        found["medusa"] = lambda: MedusaDrafter(engine, heads)
    return found


def chosen_layers(engine: Engine, model: str, costs: StepCosts) -> Sequence[int]:
    """By texts that are not measured."""
    prompts: list[str | Sequence[int]] = [p.question for p in load_split("train", 4)]
    if model == "smollm2":
        prompts = [engine.chat_prompt([{"role": "user", "content": text}]) for text in CHOOSING]
    return choose_layers(engine, prompts, costs).kept


def add_rows(
    report: Report,
    engine: Engine,
    costs: StepCosts,
    makers: dict[str, Callable[[], Drafter]],
    work: Work,
    rounds: int,
) -> None:
    engine.speculator = None
    expected = decode(engine, work)
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *makers)}
    last: dict[str, tuple[Outcome, Speculation | StaticSpeculation]] = {}
    for number in range(rounds):
        names = list(seconds)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            speculation = None
            if name.endswith(STATIC):
                speculation = StaticSpeculation(makers[name](), STATIC_NODES)
            elif name != "none":
                speculation = Speculation(makers[name](), costs)
            engine.speculator = speculation
            gc.collect()
            outcome = decode(engine, work)
            if outcome.tokens != expected.tokens:
                raise SystemExit(f"{work.model}, {work.category}: {name} changes tokens")
            seconds[name].append(outcome.seconds)
            if speculation is not None:
                last[name] = outcome, speculation
    engine.speculator = None
    for name, (outcome, speculation) in last.items():
        stats = speculation.stats
        ratios = [a / b for a, b in zip(seconds["none"], seconds[name])]
        row: dict[str, Value] = {
            "model": work.model,
            "category": work.category,
            "branches": work.branches,
            "finished_siblings": work.finished,
            "temperature": work.temperature,
            "drafter": name.removesuffix(STATIC),
            "rule": "match",
            "shape": f"static, {STATIC_NODES} nodes" if name.endswith(STATIC) else "dynamic",
            "tokens_per_step": round(stats.tokens_per_step, 2),
            "acceptance": round(stats.acceptance, 3),
            "draft_cost": round(stats.draft_seconds / outcome.seconds, 3),
            "steps": outcome.steps,
            "steps_without": expected.steps,
            "predicted_speedup": round(stats.predicted_speedup(outcome.seconds), 2)
            if isinstance(speculation, Speculation)
            else None,
            "measured_speedup": round(statistics.median(ratios), 2),
            "lowest": round(min(ratios), 2),
            "highest": round(max(ratios), 2),
        }
        report.add(**row)


def parse_args() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--models", default="smollm2,reasoner", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rounds = 2 if args.quick else args.rounds
    command = f"python -m benchmarks.speculation --models {args.models} --rounds {rounds}"
    conditions = {"threads": args.threads, "rounds": rounds, "quick": args.quick}
    report = Report("speculation", {**conditions, "command": command})
    for model in args.models.split(","):
        dtype = "int8" if model == "smollm2" else "float32"
        engine = Engine.from_pretrained(model, dtype=dtype, threads=args.threads)
        draft = None
        if model == "reasoner":
            draft = Engine.from_pretrained("reasoner-draft", threads=args.threads)
        costs = StepCosts.measure(engine)
        todo = list(works(model, engine, args.quick))
        makers = drafters(engine, draft, chosen_layers(engine, model, costs))
        for work in track(todo, description=model, transient=True):
            chosen = makers
            if work.finished:  # whoever drafts from siblings
                chosen = {name: makers[name] for name in ("suffix", "suffix" + STATIC)}
            add_rows(report, engine, costs, chosen, work, rounds)
            report.save(args.json)
    report.finish(args.json)


if __name__ == "__main__":
    main()
