"""LLMCompiler: calls start while the plan is written; what is wrong with it is fed back."""

import pytest

from benchmarks.experiments.scripted import escaped, script
from parallel_decode import Budget, Grammar, SamplingParams
from parallel_decode.engine import Prefill
from parallel_decode.reasoning import LLMCompiler, Template, Tool, Toolbox, Waiting
from tests.scripted_engine import script_engine, wait

SHORT = Template("{tools}\n")


def boom(**needs):
    raise RuntimeError("no such page")


def compiler(engine, plan: str, answer: str = "so 7", tools=None, **settings) -> LLMCompiler:
    base = {
        "plan": SHORT,
        "join": Template("\nresults:{results}\n"),
        "again": Template("\nagain:\n"),
        "plan_params": script(plan, engine=engine),
        "params": script(answer, engine=engine),
    }
    return LLMCompiler(Toolbox(tools or {"wait": wait}), **{**base, **settings})


def call(number: int, seconds: float, **needs: str) -> str:
    more = "".join(f', "{name}": "{value}"' for name, value in needs.items())
    return f'{number}. wait {{"seconds": {seconds}{more}}}\n'


def spans(clock) -> dict[float, tuple[float, float]]:
    return {function.arguments["seconds"]: (b, e) for function, _, b, e in clock.spans}


def test_makespan_is_the_critical_path():
    """With steps that take no time: a chain of 3 + 2 + 1 beside a call of 4, and a sum of 10."""
    engine, clock = script_engine()
    plan = call(1, 3) + call(2, 4) + call(3, 2, a="$1") + call(4, 1, a="$2", b="$3") + "join\n"
    solution = engine.solve("how long?", compiler(engine, plan))
    assert clock.now() == 6
    assert solution.answer == "7" and solution.usage.calls == 4
    assert "results:\n[1] 3\n[2] 4\n[3] 2\n[4] 1\n" in solution.paths[0].text
    assert engine.blocks_in_use == 0


def test_a_call_starts_while_the_plan_is_still_written():
    engine, clock = script_engine(seconds_per_step=0.01)
    first, second = call(1, 0.1), call(2, 0.2, a="$1")
    rest = call(3, 0.3) + "join\n"
    engine.solve("hi", compiler(engine, first + second + rest))
    begun = {seconds: begin for seconds, (begin, _) in spans(clock).items()}
    # A step a token: the prompt's, and one for each character up to the line's end.
    assert begun[0.1] == pytest.approx(0.01 * (len(first) + 1), abs=0.011)
    assert begun[0.2] == pytest.approx(0.01 * (len(first + second) + 1), abs=0.031)
    assert begun[0.3] > begun[0.2] + 0.01 * len(call(3, 0.3)) * 0.9
    written = 0.01 * len(first + second + rest)
    assert spans(clock)[0.1][1] < begun[0.2] and spans(clock)[0.2][1] < written


def test_it_repeats():
    def run():
        engine, clock = script_engine(seconds_per_step=0.01)
        plan = call(1, 0.3) + call(2, 0.1) + call(3, 0.2, a="$1") + "join\n"
        method = compiler(engine, plan, n=3)
        solutions = engine.solve_many(["one", "two two"], method)
        return [p.text for s in solutions for p in s.paths], [span[2:] for span in clock.spans]

    assert run() == run()


@pytest.mark.parametrize(
    ("plan", "results"),
    [
        (
            call(1, 1, a="$2") + call(2, 1, a="$1") + call(3, 2) + "join",
            ["[1] error: tasks of the plan wait for", "[2] error: tasks of", "[3] 2\n"],
        ),
        (call(1, 1, a="$1") + "join", ["[1] error: tasks of the plan wait for each other: 1 -> 1"]),
        (
            call(1, 1, a="$7") + call(2, 2, a="$1"),
            [
                "[1] error: it needs $7, which is not in the plan",
                "[2] error: not made: $1, which it needs, failed",
            ],
        ),
        (call(1, 1, a="$2") + call(2, 2) + "3. join\n", ["[1] 1\n", "[2] 2\n"]),  # forward
        (
            call(1, 1) + "1. wait {}\n" + call(2, 2),
            ["[1] 1", "[2] 2", "[?] error: the plan has two tasks 1"],
        ),
        ('1. fetch {"a": 1}\njoin', ["[1] error: no tool 'fetch': use one of wait"]),
        (
            '1. wait {"a": \n' + call(2, 1) + "join",
            ["[1] error: the arguments are no JSON", "[2] 1"],
        ),
        ("1. wait [1]\njoin", ["[1] error: the arguments must be a JSON object"]),
        (
            "so i wait\n" + call(1, 1) + "join",
            ["[1] 1", "[?] error: no task in so i wait: write 1."],
        ),
        (call(1, 1) + "\n" + call(2, 1), ["[1] 1\n"]),  # an empty line ends it
        ("join\n", []),
        ('1. wait {"a": 1}\njoin', ["[1] error: TypeError"]),
    ],
    ids=[
        "cycle",
        "self",
        "missing",
        "forward",
        "twice",
        "tool",
        "json",
        "list",
        "prose",
        "empty",
        "none",
        "arguments",
    ],
)
def test_what_is_wrong_with_a_plan_is_fed_back(plan, results):
    engine, _ = script_engine()
    engine.executor._latency = lambda call, args: call.arguments.get("seconds", 1)
    [path] = engine.solve("hi", compiler(engine, plan)).paths
    shown = path.text.partition("results:")[2].partition("so 7")[0]
    assert all(result in shown for result in results), shown
    assert shown.count("\n[") == len(results)
    assert path.answer == "7" and engine.blocks_in_use == 0


def test_values_go_from_call_to_call_whole():
    """A model is shown the beginning of a long result; a call that names it gets all of it."""
    engine, _ = script_engine()
    engine.executor._latency = lambda call, args: 1
    seen = []
    tools = {"page": lambda: "x" * 10**6, "size": lambda of, note: seen.append((len(of), note))}
    plan = '1. page\n2. size {"of": "$1", "note": "$$3 for $1"}\njoin'
    toolbox = Toolbox(tools, max_tokens=20)
    method = compiler(engine, plan)
    [path] = engine.solve("hi", LLMCompiler(**{**vars(method), "toolbox": toolbox})).paths
    [(size, note)] = seen
    assert size == 10**6 and note == "$3 for " + "x" * 10**6
    assert "[1] " + "x" * 20 + "... [999980 characters more were cut]" in path.text


def test_a_second_plan_goes_on_with_the_results_of_the_first():
    """The model draws which plan it writes; a seed is taken that writes them in their order."""
    engine, _ = script_engine()
    first = '1. boom {"seconds": 1}\njoin\n'
    second = call(2, 2) + call(3, 1, a="$2") + "join\n"
    plans = SamplingParams(grammar=Grammar.regex(f"{escaped(first)}|{escaped(second)}"))
    talk = "Replan|so 7"
    tools = {"wait": wait, "boom": boom}
    answers = SamplingParams(grammar=Grammar.regex(talk))
    method = compiler(engine, "", tools=tools, plan_params=plans, params=answers)
    for seed in range(300):
        [path] = engine.solve("hi", method, seed=seed).paths
        if "\nReplan\nagain:\n2." in path.text and path.text.endswith("so 7"):
            break
    else:
        pytest.fail("no seed writes them in their order")
    assert "results:\n[1] error: RuntimeError: no such page\nReplan" in path.text
    assert "results:\n[2] 2\n[3] 1\nso 7" in path.text  # those of the second plan alone
    assert path.text.count("join") == 2


def test_rounds_are_bounded():
    engine, _ = script_engine()
    plan = call(1, 1) + "join\n"
    for most in (1, 3):
        method = compiler(engine, plan, "Replan", max_plans=most)
        solution = engine.solve("hi", method)
        [path] = solution.paths
        assert path.text.count("results:") == most and path.text.count("again:") == most - 1
        assert solution.usage.calls == 1  # the same number again is no new task
        assert path.text.count("[?] error: the plan has two tasks 1") == most - 1


def test_the_longest_goes_first_where_few_run():
    """Two at a time: 1, 1, 1 and 3 take 4 seconds in the plan's order, 3 with the longest first."""
    for known, makespan, first in ((True, 3, 3), (False, 4, 1)):
        engine, clock = script_engine()
        lasts = {"a": 1, "b": 1, "c": 1, "d": 3}
        tools = {name: Tool(wait, seconds=lasts[name] if known else 1) for name in lasts}
        plan = "".join(
            f'{i}. {name} {{"seconds": {seconds}, "of": "$9"}}\n'
            for i, (name, seconds) in enumerate(lasts.items(), 1)
        )
        plan += '9. a {"seconds": 0}\njoin\n'  # the others become ready together
        engine.solve("hi", compiler(engine, plan, tools=tools, max_running=2))
        assert clock.now() == makespan
        begun = [call.arguments["seconds"] for call, _, begin, _ in clock.spans if begin == 0]
        assert sorted(begun) == sorted([0, first, 1])


def test_effects_keep_their_order_in_the_plan():
    engine, clock = script_engine()
    tools = {"wait": Tool(wait, ordered=True), "free": wait}
    plan = call(1, 3) + call(2, 1) + '3. free {"seconds": 2}\njoin\n'
    engine.solve("hi", compiler(engine, plan, tools=tools))
    assert spans(clock) == {3: (0, 3), 1: (3, 4), 2: (0, 2)}
    # An effect that waits for one behind it can never be: not a hang, an error for both.
    engine, clock = script_engine()
    plan = call(1, 3, a="$2") + call(2, 1) + "join\n"
    [path] = engine.solve("hi", compiler(engine, plan, tools=tools)).paths
    assert path.text.count("wait for each other") == 2


def test_a_plan_that_never_ends_is_cut_off():
    engine, _ = script_engine()
    plan = call(1, 1) + call(2, 1) * 5
    method = compiler(engine, plan, plan_params=script(plan, engine=engine, max_tokens=30))
    [path] = engine.solve("hi", method).paths
    assert "[1] 1\n[?] error: the plan was cut off after 30 tokens" in path.text


def test_budgets_contexts_and_stops():
    plan = call(1, 1) + call(2, 1, a="$1") + "join\n"
    for tokens in (0, 3, 40, 70, 72):
        engine, _ = script_engine()
        solution = engine.solve("hi", compiler(engine, plan, n=2), budget=Budget(tokens=tokens))
        assert {path.finish_reason for path in solution.paths} == {"budget"}
        assert engine.blocks_in_use == 0
    for size in (9, 30, 60, 90, 110):
        engine, _ = script_engine(max_seq_len=size)
        engine.solve("hi", compiler(engine, plan))
        assert engine.blocks_in_use == 0
    engine, clock = script_engine()
    program = engine.submit(compiler(engine, call(1, 10**6) + "join\n").program("hi"))
    while not engine._scheduler.calls:
        engine.step(wait=False)
    while program.status != "done" and not engine.idle:
        engine.step(wait=False)
    engine._scheduler.interrupt([program])
    engine.wait([program])
    [path] = program.result.paths  # it concludes with what it has
    assert path.finish_reason == "aborted" and clock.now() == 0 and engine.blocks_in_use == 0


@pytest.mark.parametrize("way", ["swap", "drop"])
def test_keys_go_while_it_waits_and_nothing_else_changes(way):
    plan = call(1, 5) + "join\n"
    texts = []
    for waiting in (
        Waiting(),
        Waiting(*{"swap": (1.0, 1e-6), "drop": (1e-6, 1.0)}[way]),
    ):
        engine, _ = script_engine()
        least = []

        def watched(seconds, engine=engine, least=least):
            least.append(engine.blocks_in_use)
            return seconds

        method = compiler(engine, plan, tools={"wait": watched}, waiting=waiting)
        solution = engine.solve("hi", method)
        texts.append((solution.paths[0].tokens, solution.paths[0].logprobs[-5:], least))
    (tokens, logprobs, kept), (same_tokens, same_logprobs, fewer) = texts
    assert tokens == same_tokens and logprobs == same_logprobs
    assert fewer[0] < kept[0]
    assert (solution.usage.swapped_tokens > 0) == (way == "swap")


def test_bad_parameters():
    engine, _ = script_engine()
    good = compiler(engine, "")
    for wrong in (
        {"n": 0},
        {"max_plans": 0},
        {"max_running": 0},
        {"replan": ""},
        {"plan": Template("x")},
        {"join": Template("x")},
        {"again": Template("{tools}")},
        {"result": Template("{text}")},
    ):
        with pytest.raises(ValueError):
            LLMCompiler(**{**vars(good), **wrong})
    bad = compiler(engine, "", plan_params=SamplingParams(grammar=Grammar.regex("(")))
    with pytest.raises(ValueError, match="grammar can't be used"):
        engine.solve("hi", bad)
    assert engine.blocks_in_use == 0 and engine.run_program(iter_prefill()) is not None


def iter_prefill():
    return (yield Prefill("hi"))
