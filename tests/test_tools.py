"""Tools: time is that of the critical path, effects keep their order, errors are text."""

import pytest

from parallel_decode import SamplingParams
from parallel_decode.engine import SimulatedExecutor
from parallel_decode.reasoning import Dispatcher, Request, Tool, Toolbox, ToolUse
from parallel_decode.reasoning.tools import check_plan, read_task, requests_in, waste_of_waiting
from tests.tiny_model import tiny_engine

PARAMS = SamplingParams(max_tokens=60, ignore_eos=True)


def wait(seconds, **needs):
    return seconds


def boom():
    raise RuntimeError("no such page")


def run_plan(lines, toolbox):
    """-> results, seconds on the simulated clock."""
    engine = tiny_engine()
    engine.executor = clock = SimulatedExecutor(lambda call, args: call.arguments["seconds"])

    def program():
        dispatcher = Dispatcher(toolbox)
        for line in lines:
            dispatcher.add(read_task(line))
            dispatcher.advance()
        return (yield from dispatcher.finish())

    return engine.run_program(program()), clock


def test_makespan_is_the_critical_path():
    lines = [
        '1. wait {"seconds": 3}',
        '2. wait {"seconds": 4}',
        '3. wait {"seconds": 2, "a": "$1"}',
        '4. wait {"seconds": 1, "a": "$2", "b": "$3"}',
    ]
    results, clock = run_plan(lines, Toolbox({"wait": wait}))
    assert results == {1: "3", 2: "4", 3: "2", 4: "1"}
    assert clock.now() == 6  # 3 + 2 + 1, not the sum of 10


def test_hidden_dependencies_are_not_reordered():
    lines = ['1. wait {"seconds": 3}', '2. wait {"seconds": 1}', '3. free {"seconds": 1}']
    toolbox = Toolbox({"wait": Tool(wait, ordered=True), "free": wait})
    _, clock = run_plan(lines, toolbox)
    spans = {args.arguments["seconds"]: (b, e) for args, _, b, e in clock.spans if b or e == 3}
    assert spans == {3: (0, 3), 1: (3, 4)} and clock.now() == 4


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['1. f {"a": "$2"}', '2. f {"a": "$1"}'], r"wait for each other: (1 -> 2 -> 1|2 -> 1)"),
        (['1. f {"a": "$1"}'], "wait for each other: 1 -> 1"),
        (['1. f {"a": "$7"}'], r"task 1 needs \$7"),
        (["1. f", "1. f"], "two tasks 1"),
    ],
)
def test_plans_that_can_not_run(lines, message):
    with pytest.raises(ValueError, match=message):
        check_plan([read_task(line) for line in lines])
    assert read_task("no task") is None


def test_what_goes_wrong_is_text():
    toolbox = Toolbox({"boom": boom, "big": lambda: "x" * 10**6, "slow": wait}, max_characters=50)
    engine = tiny_engine()

    def result(text):
        [request] = requests_in(f"so <call>{text}</call>")
        return engine.run_program(toolbox.run(request))

    assert result("boom") == "error: RuntimeError: no such page"
    assert result("none").startswith("error: no tool 'none': use one of boom, big")
    assert "no JSON" in result("slow {") and "JSON object" in result("slow [1]")
    assert result('slow {"minutes": 1}').startswith("error: TypeError")
    assert result("big") == "x" * 50 + "... [999950 characters more were cut]"
    with pytest.raises(ValueError, match="at least one tool"):
        Toolbox({})
    with pytest.raises(ValueError, match="max_characters"):
        Toolbox({"boom": boom}, max_characters=0)


def test_waste_of_waiting():
    assert waste_of_waiting(100, 100, 0.01, 0.001).least == "keep"
    assert waste_of_waiting(100, 100, 10, 0.001).least == "drop"
    assert waste_of_waiting(100, 100, 10, 0.001, 0.0001).least == "swap"
    assert waste_of_waiting(0, 5, 10, 0.001).least == "keep"
    with pytest.raises(ValueError, match="negative"):
        waste_of_waiting(1, 1, float("nan"), 1)


def turn(text):
    return [Request("echo", {"text": "abc"}), Request("boom", {})]


@pytest.mark.parametrize("seconds_per_token", [None, 0.0], ids=["keep", "drop"])
def test_turns_go_on_with_their_results(seconds_per_token):
    engine = tiny_engine()
    # Capitals and brackets are no tokens of this model.
    toolbox = Toolbox({"echo": lambda text: text, "boom": lambda: "zero"})
    method = ToolUse(
        toolbox,
        n=3,
        max_turns=2,
        end_of_calls="a",
        result="={number}.{text}=",
        read=turn,
        seconds_per_token=seconds_per_token,
        params=PARAMS,
    )
    solutions = engine.solve_many(["abc", "xyz"], method)
    texts = [path.text for solution in solutions for path in solution.paths]
    assert any("=1.abc==2.zero=" in text for text in texts)
    assert all(text.count("=1.abc==2.zero=") <= 2 for text in texts)
    assert sum(s.usage.calls for s in solutions) == 2 * sum(t.count("=1.abc=") for t in texts)
    assert engine.blocks_in_use == 0


def test_bad_parameters():
    toolbox = Toolbox({"boom": boom})
    for wrong in ({"n": 0}, {"max_turns": -1}, {"end_of_calls": ""}, {"result": ""}):
        with pytest.raises(ValueError):
            ToolUse(toolbox, **wrong)
    with pytest.raises(ValueError, match="negative"):
        ToolUse(toolbox, seconds=-1)
