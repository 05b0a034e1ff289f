"""Chains against trees of as many nodes, from the same drafters, in the same engine.

`python -m benchmarks.draft_shapes [--quick] [--json PATH]`

A drafter that can do both decodes the same prompts in one branch, in turns with a chain and with a
tree. `draft_us`, `step_us`: of one step, drafting alone and in all; `tokens_per_step`: in the steps
with drafts; `speed_to_chain`: tokens per second over the chain's, the median of the rounds, and the
lowest and highest beside it.
"""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping

from rich.progress import track

from benchmarks.bundled_drafters import KEPT_LAYERS
from benchmarks.chain_of import ChainOf
from benchmarks.report import Report, Value, argument_parser
from benchmarks.speculation import Work, decode
from parallel_decode import Engine
from parallel_decode.engine import Drafter
from parallel_decode.speculation import (
    EagleDrafter,
    MedusaDrafter,
    SkipLayersDrafter,
    StaticSpeculation,
    SuffixDrafter,
    TrainedHeads,
)
from parallel_decode.tasks import TASKS, load_split

NODES = (4, 8, 16)


def pairs(engine: Engine) -> dict[str, dict[str, Callable[[], Drafter]]]:
    """Drafters that can do both -> shape -> a new one."""
    heads = TrainedHeads.load(engine.name, engine.config)
    return {
        "eagle": {
            "chain": lambda: EagleDrafter(engine, heads, num_siblings=0),
            "tree": lambda: EagleDrafter(engine, heads),
        },
        "medusa": {
            "chain": lambda: MedusaDrafter(engine, heads, num_guesses=1),
            "tree": lambda: MedusaDrafter(engine, heads),
        },
        "layers": {
            "chain": lambda: SkipLayersDrafter(engine, KEPT_LAYERS, num_siblings=0),
            "tree": lambda: SkipLayersDrafter(engine, KEPT_LAYERS),
        },
        "suffix": {"chain": lambda: ChainOf(SuffixDrafter()), "tree": SuffixDrafter},
    }


def shape_rows(
    engine: Engine,
    drafter: str,
    shapes: Mapping[str, Callable[[], Drafter]],
    nodes: int,
    work: Work,
    rounds: int,
) -> Iterator[dict[str, Value]]:
    seconds: dict[str, list[float]] = {shape: [] for shape in shapes}
    last: dict[str, tuple[StaticSpeculation, int]] = {}
    for number in range(rounds):
        for shape in list(shapes)[:: -1 if number % 2 else 1]:
            engine.speculator = speculation = StaticSpeculation(shapes[shape](), nodes)
            gc.collect()
            outcome = decode(engine, work)
            engine.speculator = None
            seconds[shape].append(outcome.seconds)
            last[shape] = speculation, outcome.steps
    for shape, (speculation, steps) in last.items():
        ratios = [chain / own for chain, own in zip(seconds["chain"], seconds[shape])]
        yield {
            "drafter": drafter,
            "shape": shape,
            "nodes": nodes,
            "tokens_per_step": round(speculation.stats.tokens_per_step, 4),
            "draft_us": round(speculation.stats.draft_seconds / steps * 1e6, 1),
            "step_us": round(statistics.median(seconds[shape]) / steps * 1e6, 1),
            "speed_to_chain": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        }


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    per_task, rounds = (1, 1) if args.quick else (4, 3)
    engine = Engine.from_pretrained("reasoner", threads=args.threads)
    problems = load_split("test", 400)
    prompts = tuple(
        tuple(engine.tokenizer.encode(problem.question, add_bos=None))
        for task in TASKS
        for problem in [p for p in problems if p.task == task][:per_task]
    )
    work = Work("reasoner", "all", prompts, 1, 1.0, 100)
    report = Report(
        "draft_shapes",
        {
            "quick": args.quick,
            "threads": args.threads,
            "model": work.model,
            "temperature": work.temperature,
            "prompts": len(prompts),
            "max_tokens": work.max_tokens,
            "rounds": rounds,
        },
    )
    for drafter, shapes in track(pairs(engine).items(), "drafters", transient=True):
        for nodes in NODES:
            for row in shape_rows(engine, drafter, shapes, nodes, work, rounds):
                report.add(**row)
            report.save(args.json)
    report.finish(args.json)


if __name__ == "__main__":
    main()
