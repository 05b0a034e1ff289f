"""AsyncLM: calls do not block; results come at safe points, and a run repeats exactly."""

import pytest

from benchmarks.experiments.scripted import script
from parallel_decode import Budget, SamplingParams
from parallel_decode.reasoning import AsyncLM, Template, Tool, Toolbox, Waiting
from parallel_decode.reasoning.tools import CallReader, Event
from tests.scripted_engine import script_engine, wait

STEP = 0.01
PROSE = "some more words on it\n"


def boom(**needs):
    raise RuntimeError("no such page")


def asks(seconds: float, **needs: str) -> str:
    more = "".join(f', "{name}": "{value}"' for name, value in needs.items())
    return f'<call>wait {{"seconds": {seconds}{more}}}</call>'


def method(engine, *parts: str, tools=None, max_tokens: int = 400, **settings) -> AsyncLM:
    base = {
        "prompt": None,
        "result": Template("|{number}={text}|"),
        "params": script(*parts, engine=engine, max_tokens=max_tokens),
    }
    toolbox = Toolbox(tools or {"wait": wait, "boom": boom}, max_tokens=80)
    return AsyncLM(toolbox, **{**base, **settings})


def written(*parts: str, tools=None, seconds_per_step=STEP, **settings):
    """-> the text, the clock."""
    engine, clock = script_engine(seconds_per_step)
    solution = engine.solve("hi", method(engine, *parts, tools=tools, **settings))
    assert engine.blocks_in_use == 0 and not engine._scheduler.calls
    return solution.paths[0].text, clock


def test_it_writes_on_while_a_call_runs():
    """0.5 s are 50 characters: the result stands behind the line in which it came."""
    text, clock = written(asks(0.5) + "\n", *[PROSE] * 4, "so 7")
    assert text == asks(0.5) + "\n" + PROSE * 3 + "|1=0.5|" + PROSE + "so 7"
    # The writing alone, and what it was told: a call inside it costs no time.
    alone = len(asks(0.5) + "\n" + PROSE * 4 + "so 7")
    assert clock.now() == pytest.approx(STEP * alone, abs=3.5 * STEP)


def test_makespan_is_at_most_the_longer_of_both_and_the_interrupts():
    """Survey 10.3: overlap <= max(decode, tools) + interrupts; in turns it would be their sum."""
    for seconds in (0.2, 1.0, 3.0):
        text, clock = written(asks(seconds) + "\n", *[PROSE] * 4, "<trap></trap>", "so 7")
        own = text.replace(f"|1={seconds}|", "")
        decode, called = STEP * len(own), STEP * len(asks(seconds))
        tools = called + seconds + STEP * len("so 7")
        assert max(decode, tools) - 2 * STEP <= clock.now() <= max(decode, tools) + 5 * STEP
        assert clock.now() < decode + seconds - 0.1


def test_no_result_comes_within_a_call_or_a_critical_section():
    """It is there early, and told once the call, or the section, has been closed."""
    long_call = asks(0.01, note="x" * 40)
    text, _ = written(asks(0.05), long_call, PROSE, "so 7")
    assert text == asks(0.05) + long_call + "|1=0.05|" + PROSE + "|2=0.01|so 7"
    section = "```\nline one\nline two\n```"
    text, _ = written(asks(0.05) + "\n", section, "\n", "so 7")
    assert text == asks(0.05) + "\n" + section + "|1=0.05|\nso 7"
    # Without the section's marks in the settings each line's end is safe.
    parts = (asks(0.05) + "\n", "```\n", "line one\n", "line two\n", "```", "\n", "so 7")
    text, _ = written(*parts, sections=())
    assert text == asks(0.05) + "\n```\n|1=0.05|line one\nline two\n```\nso 7"
    text, _ = written("[[", "a\n", asks(1) + "\n]]", "so 7", sections=[("[[", "]]")])
    assert "|" not in text  # a call that is quoted is not made


def test_a_trap_waits_for_the_call_that_it_names():
    text, clock = written(asks(0.5), asks(5), "<trap>1</trap>", PROSE, "<trap>2</trap>", "so 7")
    assert text == (
        asks(0.5) + asks(5) + "<trap>1</trap>|1=0.5|" + PROSE + "<trap>2</trap>|2=5|so 7"
    )
    assert clock.now() == pytest.approx(5 + STEP * len(asks(0.5) + asks(5) + "so 7"), abs=0.05)
    text, _ = written(asks(1), asks(2), asks(9), "<trap>2, 1</trap>", "<trap></trap>", "so 7")
    assert text.endswith("<trap>2, 1</trap>|1=1||2=2|<trap></trap>|3=9|so 7")
    for nothing in ("<trap></trap>", "<trap>3</trap>", "<trap>x</trap>", "<trap>0</trap>"):
        text, clock = written(nothing, "so 7")
        word = nothing[6:-7]
        told = f"|?=error: there is no call {word} to wait for|" if word else ""
        assert text == f"{nothing}{told}so 7"


def test_a_call_may_name_an_earlier_one():
    text, clock = written(asks(1), asks(2, a="$1"), "<trap>2</trap>", "so 7")
    assert text.endswith("<trap>2</trap>|1=1||2=2|so 7")
    [first, second] = clock.spans
    assert second[2] == pytest.approx(first[3])
    text, _ = written(asks(1, a="$2"), asks(1, a="$1"), "<trap></trap>", "so 7")
    assert "|1=error: it needs $2, which has not been called|" in text
    assert "|2=error: not made: $1, which it needs, failed|" in text


def test_the_end_waits_for_what_runs():
    """No result is lost: it is told behind the end of sequence, which is taken back."""
    text, clock = written(asks(3), "so 7")
    assert text == asks(3) + "so 7|1=3|"
    assert clock.now() == pytest.approx(3 + STEP * len(asks(3)), abs=0.03)


def test_out_of_tokens_calls_are_given_up():
    text, clock = written(asks(3), *[PROSE] * 3, max_tokens=len(asks(3)) + 20)
    assert text == asks(3) + PROSE[:20] and clock.now() < 1 and not clock.spans


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (["<call>wait {\n", "so 7"], "|?=error: not closed on its line: <call>wait {|"),
        (["<trap>1\n", "so 7"], "|?=error: not closed on its line: <trap>1|"),
        (["<call>wait {</call>", "so 7"], "|1=error: the arguments are no JSON"),
        (["<call>no {}</call>", "so 7"], "|1=error: no tool 'no'"),
        (
            ['<call>boom {"seconds": 0}</call>', "\n", "so 7"],
            "|1=error: RuntimeError: no such page|",
        ),
        (["<call></call>", "so 7"], "|1=error: no tool ''"),
        (["</call>", "so 7"], ""),
        (["<call>wait ", "so 7"], ""),  # the text ends within a call: it is none
    ],
)
def test_what_is_malformed_is_told(parts, told):
    text, _ = written(*parts)
    assert told in text and text.replace("|", "").count("error:") == bool(told)


def test_a_tool_that_hangs_is_told_as_late():
    tools = {"wait": Tool(wait, timeout=2)}
    text, clock = written(asks(100), "<trap>1</trap>", "so 7", tools=tools)
    assert text.endswith("|1=error: TimeoutError: no result within 2 s|so 7") and clock.now() < 4


def test_it_repeats_with_others_in_the_batch():
    parts = [asks(0.4) + "\n", PROSE, asks(0.1), PROSE, PROSE, "<trap></trap>", "so 7"]

    def run(questions, **options):
        engine, clock = script_engine(STEP, **options)
        solutions = engine.solve_many(questions, method(engine, *parts, n=2))
        return [[path.text for path in s.paths] for s in solutions], clock.spans

    (first, _), spans = run(["hi"]), run(["hi"])[1]
    assert run(["hi"])[0] == first and [s[2:] for s in run(["hi"])[1]] == [s[2:] for s in spans]
    together, _ = run(["hi", "hello", "what"])
    again, _ = run(["hi", "hello", "what"])
    assert together == again and [texts[0].count("|") for texts in together] == [4] * 3


def test_longest_first_where_few_run():
    """Ready at the same time, one after the other runs: 3, then 2, then 1."""
    lasts = {"a": 1, "b": 3, "c": 2}
    tools = {name: Tool(wait, seconds=seconds) for name, seconds in lasts.items()}
    calls = [f'<call>{name} {{"seconds": {lasts[name]}, "of": "$1"}}</call>' for name in lasts]
    first = '<call>c {"seconds": 2}</call>'
    _, clock = written(first, *calls, "<trap></trap>", "so 7", tools=tools, max_running=1)
    assert [call.arguments["seconds"] for call, *_ in clock.spans] == [2, 3, 2, 1]


@pytest.mark.parametrize("waiting", [Waiting(0.0), Waiting(1.0, 0.0)], ids=["drop", "swap"])
def test_keys_that_were_away_change_nothing(waiting):
    rows = []
    for how in (Waiting(), waiting):
        engine, _ = script_engine()
        parts = [asks(1), PROSE, "<trap>1</trap>", PROSE, "so 7"]
        solution = engine.solve("hi", method(engine, *parts, n=2, waiting=how))
        rows.append([(path.tokens, str(path.logprobs)) for path in solution.paths])
    assert rows[0] == rows[1]
    assert (solution.usage.swapped_tokens > 0) == (waiting.seconds_per_token > 0)


def test_budgets_aborts_and_no_room():
    parts = [asks(0.2), PROSE, asks(50), "<trap></trap>", "so 7"]
    for tokens in (0, 10, 40, 90):
        engine, _ = script_engine(STEP)
        solution = engine.solve("hi", method(engine, *parts), budget=Budget(tokens=tokens))
        assert solution.paths[0].finish_reason == "budget" and engine.blocks_in_use == 0
    for size in (20, 60, 100, 118, 121):
        engine, _ = script_engine(STEP, max_seq_len=size)
        engine.solve("hi", method(engine, *parts))
        assert engine.blocks_in_use == 0 and not engine._scheduler.calls
    engine, clock = script_engine(STEP)
    program = engine.submit(method(engine, *parts, n=2).program("hi"))
    while not engine.idle:  # both wait in their traps
        engine.step(wait=False)
    first, second = (branch for branch in program.branches if branch.path)
    engine.abort(first)
    engine.prune(second)
    engine.wait([program])
    assert program.error is None and clock.now() < 5
    one, other = program.result.paths
    assert one.finish_reason == "aborted" and "so 7" not in one.text + other.text
    assert engine.blocks_in_use == 0 and not engine._scheduler.calls


def test_calls_are_found_as_the_text_grows():
    text = "a<call>f {}</call>b<trap>1</trap>\n```<call>g</call>```<call>h\n<call>k</call> <call>"
    whole = CallReader([("```", "```")])
    events = whole.read(text)
    assert events == [
        Event("call", "f {}"),
        Event("trap", "1"),
        Event("malformed", "<call>h"),
        Event("call", "k"),
    ]
    assert whole.inside and whole.stops == ["\n", "</call>", "</trap>", "```"]
    for size in (1, 2, 5, 13):
        pieces = CallReader([("```", "```")])
        found = [e for i in range(0, len(text), size) for e in pieces.read(text[i : i + size])]
        assert found == events and pieces.inside
    with pytest.raises(ValueError, match="begin and an end"):
        CallReader([("```", "")])


def test_bad_parameters():
    engine, _ = script_engine()
    for wrong in (
        {"n": 0},
        {"max_running": 0},
        {"result": Template("{text}")},
        {"prompt": Template("x")},
        {"sections": [("", "]")]},
    ):
        with pytest.raises(ValueError):
            method(engine, "", **wrong)
    assert isinstance(method(engine, "").params, SamplingParams)
