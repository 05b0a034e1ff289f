"""Calls of tools: one after the other, level by level, by LLMCompiler, and by AsyncLM.

`python -m benchmarks.experiments.tools [--quick] [--json PATH] [--figure PATH]`

In the first part the plans are scripted: a grammar leaves the model one text, which it
decodes token by token as it would its own. The time of decoding is real, and what is written is not
the model's merit; accuracy is no question here. In the second part ("taught", see `taught_tools`)
a model writes its own calls. All methods make the same six calls of each drawn
graph and write the same paragraph, which needs no result: the sequential one a call a turn,
`levels` all calls of a level in a turn, both with the paragraph in the last turn; LLMCompiler a
plan, with the paragraph in the answer behind the results; AsyncLM calls, with the paragraph while
they run.

All graphs run in one batch, each from the common begin to its own end. On the simulated clock a
step of the model takes `--step-seconds` for any number of graphs, a tool its seconds; under "real"
the model takes its time and the tools sleep. `gain` is the seconds saved against the sequential
one. `tools_s` is what the calls take with decoding at no time: the critical path at best, for the
sequential one their sum. `decode_s` is what the steps take with tools at no time. `overlap_s` is
decode_s + tools_s - makespan_s, the time in which both went on, `overlap_share` its share of the
shorter of both; they are known on the simulated clock alone, as a real step takes longer the more
graphs write. On chains nothing can be saved but by overlap: that is the control. Two calls at a
time are run with and without knowing how long calls take (longest first).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from benchmarks.experiments import taught_tools
from benchmarks.experiments.call_graph import SHAPES, CallGraph
from benchmarks.experiments.experiment import against, draw, open_engine, parsed, parser, report
from benchmarks.experiments.scripted import script
from benchmarks.experiments.timed_questions import Measured, simulated, solved
from parallel_decode import Engine
from parallel_decode.engine import Threads
from parallel_decode.reasoning import AsyncLM, LLMCompiler, Method, Template, Tool, Toolbox, ToolUse

SHORTEST, LONGEST = 0.2, 2.0
"""Seconds of a call."""
PARAGRAPH = (
    "Meanwhile, what needs no result: the calls come of one question, and each has a price in time."
)
DONE = "All calls are done."
RESULT = Template("|{number} {text}|")
CLOCKS = ("simulated", "real")


@dataclass(frozen=True)
class Arm:
    """One way to make the calls of a graph.

    Args:
        make: graph, toolbox and engine to the method that does.
        tools_s: what the calls take with decoding at no time and no limit.
        slots: calls at a time; None for no limit.
        knows: whether it knows how long calls take.
        clocks: on which it runs.
    """

    make: Callable[[CallGraph, Toolbox, Engine], Method]
    tools_s: Callable[[CallGraph], float]
    slots: int | None = None
    knows: bool = True
    clocks: Sequence[str] = CLOCKS


def written(graph: CallGraph, number: int) -> str:
    """A call with its seconds and what it needs; calls are numbered from 1."""
    places = [f"${k + 1}" for k in graph.needs[number]]
    arguments: dict[str, object] = {"seconds": graph.seconds[number]}
    return f"w{number + 1} " + json.dumps({**arguments, **({"after": places} if places else {})})


def in_turns(levels: Callable[[CallGraph], list[list[int]]]) -> Callable:
    def make(graph: CallGraph, toolbox: Toolbox, engine: Engine) -> Method:
        turns = [
            "".join(f"<call>{written(graph, n)}</call>\n" for n in level) + "</calls>"
            for level in levels(graph)
        ]
        params = script(*turns, PARAGRAPH + DONE, engine=engine)
        return ToolUse(
            toolbox, max_turns=len(turns), prompt=None, result=RESULT, params=params, extract=_done
        )

    return make


def compiled(graph: CallGraph, toolbox: Toolbox, engine: Engine) -> Method:
    lines = [f"{n + 1}. {written(graph, n)}\n" for n in range(len(graph.seconds))]
    return LLMCompiler(
        toolbox,
        plan=Template("\nPlan for {tools}:\n"),
        plan_params=script("".join(lines) + "join\n", engine=engine),
        params=script(PARAGRAPH + DONE, engine=engine),
        extract=_done,
    )


def asynchronous(slots: int | None = None) -> Callable:
    def make(graph: CallGraph, toolbox: Toolbox, engine: Engine) -> Method:
        calls = [f"<call>{written(graph, n)}</call>" for n in range(len(graph.seconds))]
        parts = [*calls, PARAGRAPH + "\n", "<trap></trap>", DONE]
        params = script(*parts, engine=engine)
        return AsyncLM(
            toolbox, max_running=slots, prompt=None, result=RESULT, params=params, extract=_done
        )

    return make


def _done(text: str) -> str | None:
    return "done" if text.rstrip("|").endswith(DONE) else None


def _one_by_one(graph: CallGraph) -> list[list[int]]:
    return [[number] for number in range(len(graph.seconds))]


def _sum_of_levels(graph: CallGraph) -> float:
    return sum(max(graph.seconds[n] for n in level) for level in graph.levels)


def _critical(graph: CallGraph) -> float:
    return graph.critical_path


ARMS = {
    "sequential": Arm(in_turns(_one_by_one), lambda graph: sum(graph.seconds)),
    "levels": Arm(in_turns(lambda graph: graph.levels), _sum_of_levels),
    "LLMCompiler": Arm(compiled, _critical),
    "AsyncLM": Arm(asynchronous(), _critical),
    "AsyncLM, 2 at a time": Arm(asynchronous(2), _critical, 2, False, ("simulated",)),
    "AsyncLM, 2, longest first": Arm(asynchronous(2), _critical, 2, True, ("simulated",)),
}


def toolbox(graph: CallGraph, arm: Arm, sleep: Callable[[float], None]) -> Toolbox:
    """A tool a call, so that each has its own time."""

    def work(seconds: float, after: Sequence[str] = ()) -> str:
        sleep(seconds)
        return "done"

    return Toolbox(
        {
            f"w{number}": Tool(work, seconds=seconds if arm.knows else 1.0)
            for number, seconds in enumerate(graph.seconds, 1)
        }
    )


def on_simulated_clock(
    engine: Engine, graphs: Sequence[CallGraph], arm: Arm, step_seconds: float
) -> list[Measured]:
    def call_seconds(call: Callable, args: Sequence) -> float:
        return call.arguments["seconds"]

    boxes = [toolbox(graph, arm, lambda seconds: None) for graph in graphs]
    methods = [arm.make(graph, box, engine) for graph, box in zip(graphs, boxes, strict=True)]
    return _followed(simulated(engine, _asked(graphs), methods, call_seconds, step_seconds))


def on_real_clock(engine: Engine, graphs: Sequence[CallGraph], arm: Arm) -> list[Measured]:
    engine.executor = Threads()
    methods = [arm.make(graph, toolbox(graph, arm, time.sleep), engine) for graph in graphs]
    return _followed(solved(engine, _asked(graphs), methods, time.perf_counter))


def _asked(graphs: Sequence[CallGraph]) -> list[str]:
    return [f"Make these calls, {number}.\n" for number in range(len(graphs))]


def _followed(runs: list[Measured]) -> list[Measured]:
    for run in runs:
        if run.solution.answer != "done":
            raise RuntimeError(f"the script was not followed: {run.solution.paths[0].text!r}")
    return runs


def rows(
    engine: Engine, clock: str, shaped: Mapping[str, Sequence[CallGraph]], args: argparse.Namespace
) -> Iterator[dict]:
    """One a shape and method."""
    graphs = [graph for some in shaped.values() for graph in some]
    shapes = [shape for shape, some in shaped.items() for _ in some]
    seen: dict[str, list[Measured]] = {}
    for name, arm in ARMS.items():
        if clock == "simulated":
            seen[name] = on_simulated_clock(engine, graphs, arm, args.step_seconds)
        elif clock in arm.clocks:
            seen[name] = on_real_clock(engine, graphs, arm)
    for shape, some in shaped.items():
        places = [place for place, of in enumerate(shapes) if of == shape]
        base = [seen["sequential"][place] for place in places]
        for name, runs in seen.items():
            row = _row(some, [runs[place] for place in places], base)
            if clock == "simulated" and ARMS[name].slots is None:
                tools = float(np.mean([ARMS[name].tools_s(graph) for graph in some]))
                decode = row["forward_steps"] * args.step_seconds
                overlap = decode + tools - row["makespan_s"]
                row |= {"decode_s": decode, "tools_s": tools, "overlap_s": overlap}
                row["overlap_share"] = overlap / min(decode, tools)
            yield {"clock": clock, "shape": shape, "method": name, "graphs": len(some), **row}


def _row(
    graphs: Sequence[CallGraph],
    runs: Sequence[Measured],
    base: Sequence[Measured],
) -> dict:
    makespans, before = [run.makespan_s for run in runs], [run.makespan_s for run in base]
    paths = [graph.critical_path for graph in graphs]
    return {
        "makespan_s": float(np.mean(makespans)),
        "critical_path_s": float(np.mean(paths)),
        "over_critical_path": float(np.mean(np.divide(makespans, paths))),
        "forward_steps": float(np.mean([run.forward_steps for run in runs])),
        "times_faster": sum(before) / sum(makespans),
        **against([-seconds for seconds in before], [-seconds for seconds in makespans]),
    }


def main() -> None:
    arguments = parser(__doc__, questions=3, samples=1)
    arguments.set_defaults(model="reasoner", data="drawn graphs", temperature=0.0, seeds=1)
    arguments.add_argument(
        "--step-seconds", type=float, default=0.005, help="on the simulated clock"
    )
    arguments.add_argument(
        "--problems", type=int, default=500, help="of a kind, whose calls the model writes itself"
    )
    args = parsed(arguments)
    shapes = SHAPES
    if args.quick:
        args.questions, args.problems, shapes = 1, 20, SHAPES[:2]
    engine = open_engine(args)
    result = report(
        "tools",
        args,
        step_seconds=args.step_seconds,
        threads=args.threads,
        plans="scripted: a grammar leaves one text; taught: the model's own",
        problems=args.problems,
        taught_model=taught_tools.MODEL,
        call_seconds=f"{SHORTEST} to {LONGEST}",
    )
    on_real_clock(
        engine, [CallGraph.drawn("independent", 0, 0.0, 0.0)], ARMS["AsyncLM"]
    )  # warms up
    shaped = {
        shape: [CallGraph.drawn(shape, seed, SHORTEST, LONGEST) for seed in range(args.questions)]
        for shape in shapes
    }
    for clock in CLOCKS:
        for row in rows(engine, clock, shaped, args):
            result.add(**row)
    for row in taught_tools.rows(args, SHORTEST, LONGEST):
        result.add(**row)

    scripted = [row for row in result.rows if row["shape"] in shapes]

    def panel(clock: str, column: str, label: str) -> Callable[[Axes], None]:
        def paint(axes: Axes) -> None:
            names = [name for name, arm in ARMS.items() if arm.slots is None]
            for offset, name in enumerate(names):
                bars = [r for r in scripted if r["clock"] == clock and r["method"] == name]
                places = np.arange(len(bars)) + 0.2 * offset - 0.3
                axes.bar(places, [row[column] for row in bars], 0.2, label=name)
                if column == "makespan_s":
                    path = [row["critical_path_s"] for row in bars]
                    marks = axes.hlines(path, places - 0.1, places + 0.1, colors="#7a7a7a")
            if column == "makespan_s":
                marks.set_label("critical path of the calls")
            axes.set_xticks(range(len(shapes)), shapes, fontsize=7)
            axes.set(ylabel=label)
            axes.legend(frameon=False, fontsize=6)

        return paint

    draw(
        args.figure,
        [
            panel("simulated", "makespan_s", "makespan, s (simulated clock)"),
            panel("real", "makespan_s", "makespan, s (real sleeps)"),
            panel("simulated", "overlap_share", "overlap of decoding and calls, share"),
        ],
    )
    result.finish(args.json)


if __name__ == "__main__":
    main()
