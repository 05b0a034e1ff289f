"""The command line as a user types it."""

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from parallel_decode.cli.main import app
from parallel_decode.cli.session import Session
from parallel_decode.cli.solve import print_solution
from parallel_decode.engine import Engine, StepStats
from parallel_decode.questions import load_questions
from parallel_decode.reasoning import METHODS, Path, Solution, TreeNode
from parallel_decode.speculation import Speculation, StepCosts

runner = CliRunner()
QUESTION = "chain mod 10; a=4; b=a+7; c=b*7; c?"


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests fill what is allocated with NaN, and 4 GiB of it take seconds."""
    monkeypatch.setattr("parallel_decode.engine.placement.HOST_KV_BYTES", 64 << 20)


def run(*args: str, code: int = 0):
    result = runner.invoke(app, list(args))
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def test_help_names_every_command():
    text = run("--help").output
    for command in ("demo", "solve", "search", "eval", "methods", "models", "info"):
        assert command in text
        assert "--help" in run(command, "--help").output


def test_methods_lists_every_method_with_its_defaults():
    rows = json.loads(run("methods", "--json").stdout)["methods"]
    assert [row["class"] for row in rows] == [method.__name__ for method in METHODS]
    for row in rows:
        assert row["name"] and row["family"] and row["paper"] and row["primitives"]
        params = row["defaults"].get("params", {"temperature": 1.0})
        assert params["temperature"] == 1.0
    assert len({row["name"] for row in rows}) == len(rows)
    text = run("methods").output
    assert "Wang" in text and "best-of-n" in text


def test_solve_votes_and_prints_json():
    data = json.loads(run("solve", QUESTION, "--n", "8", "--threads", "1", "--json").stdout)
    assert len(data["paths"]) == 8
    assert data["answer"] == data["votes"][0][0]
    assert data["usage"]["generated_tokens"] == sum(len(p["tokens"]) for p in data["paths"])
    again = json.loads(run("solve", QUESTION, "--n", "8", "--threads", "1", "--json").stdout)
    assert again["votes"] == data["votes"]
    other = run("solve", QUESTION, "--n", "8", "--seed", "1", "--temperature", "2", "--json")
    assert json.loads(other.stdout)["paths"] != data["paths"]


def test_solve_takes_any_method_and_its_fields():
    args = ("solve", QUESTION, "--method", "dvts", "--max-tokens", "24", "--json")
    wide = json.loads(
        run(*args, "--set", "trees=3", "--set", "expand=2", "--set", "max_steps=2").stdout
    )
    # Each tree draws two children of the question, one tree after another.
    assert len(wide["tree"][0]["children"]) == 6


@pytest.mark.parametrize(
    "args, message",
    [
        (("--method", "nope"), "no method 'nope': there are self-consistency, cisc,"),
        (("--method", "dvts", "--set", "tree=3"), "dvts has no field 'tree': it has"),
        (("--method", "dvts", "--set", "trees"), "key=value, got 'trees'"),
        (("--method", "dvts", "--set", "trees=0"), "trees must be at least 1, got 0"),
        (("--method", "dvts", "--set", "trees=x"), "trees must be of the kind of 4 (int), got 'x'"),
        (("--method", "dvts", "--set", "trees=True"), "got 'True'"),
        (("--method", "dvts", "--set", "scorer=x"), "scorer can't be set from a command"),
        (("--method", "dvts", "--set", "params=1"), "params can't be set from a command"),
        (("--method", "tool-use"), "tool-use needs toolbox"),
        (("--method", "dvts", "--vote", "logprob"), "--vote is for self-consistency"),
    ],
)
def test_a_bad_choice_of_method_is_named(args, message):
    result = runner.invoke(app, ["solve", QUESTION, *args])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_solve_in_words():
    output = run("solve", QUESTION, "--n", "4", "--threads", "1").output
    assert "answer:" in output and "tokens stored for" in output


def test_search_draws_a_tree_and_writes_the_page(tmp_path):
    page = tmp_path / "tree.html"
    output = run("search", QUESTION, "--width", "2", "--expand", "2", "--html", str(page)).output
    assert "answer:" in output and ("├" in output or "└" in output)
    assert "const solution" in page.read_text()


def test_eval_reports_every_figure():
    data = json.loads(run("eval", "--questions", "6", "--n", "4", "--json").stdout)
    assert data["method"] == "self-consistency" and data["questions"] == 6 and data["n"] == 4
    assert 0 <= data["pass_at_1"] <= data["pass_at_n"] <= 1
    assert data["gain_low"] <= data["gain"] <= data["gain_high"]
    assert data["gain"] == pytest.approx(data["accuracy"] - data["pass_at_1"])
    one_task = json.loads(
        run("eval", "--questions", "3", "--n", "2", "--data", "dag", "--json").stdout
    )
    assert list(one_task["by_kind"]) == ["dag"]
    assert one_task["by_kind"]["dag"]["accuracy"] == one_task["accuracy"]


def test_eval_scores_what_the_method_answers():
    args = ("eval", "--questions", "6", "--max-tokens", "24", "--json", "--method")
    beam = json.loads(run(*args, "step-beam", "--set", "width=2", "--set", "expand=3").stdout)
    assert beam["method"] == "step-beam" and beam["n"] <= 2
    # The trees of a forest read answers as the questions want it, though it has no such field.
    forest = json.loads(run(*args, "forest", "--set", "trees=2").stdout)
    assert forest["accuracy"] > 0


def test_eval_reads_a_file(tmp_path):
    [question] = load_questions("dag", 1)
    assert question.problem is not None
    answer = question.problem.answer
    file = tmp_path / "few.jsonl"
    rows = [{"question": question.prompt, "answer": f"so #### {answer}"}, {"question": "?"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    args = ("eval", "--data", str(file), "--n", "8", "--json")
    data = json.loads(run(*args, "--questions", "1").stdout)
    assert list(data["by_kind"]) == ["few"] and data["pass_at_n"] == 1
    bad = run(*args, "--questions", "2", code=2)
    assert "few.jsonl:2 is no object" in "".join(bad.stderr.split("\n"))


def test_models_and_info():
    names = [row["name"] for row in json.loads(run("models", "--json").stdout)["models"]]
    bundled = ["reasoner", "reasoner-draft", "reasoner-formats"]
    assert names == [*bundled, "reasoner-judge", "reasoner-peers", "reasoner-tools", "smollm2"]
    assert "reasoner-draft" in run("models").output
    assert json.loads(run("info", "--json").stdout)["block_size"] == 16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("solve", QUESTION, "--model", "nothing"), "no model 'nothing'"),
        (("solve", QUESTION, "--temperature", "-1"), "temperature must be"),
        (("solve", QUESTION, "--n", "0"), "n must be at least 1, got 0"),
        (("solve", QUESTION, "--extract", "foo"), "no extractor 'foo'"),
        (("solve", QUESTION, "--extract", "regex:("), "'(' is no regular expression"),
        (("solve", QUESTION, "--threads", "-1"), "threads must be at least 1, got -1"),
        (("solve", QUESTION, "--vote", "loudest"), "'loudest'"),
        (("search", QUESTION, "--width", "0"), "width must be at least 1, got 0"),
        (("solve", QUESTION, "--dtype", "int3"), "dtype must be one of"),
        (("eval", "--data", "chess"), "no questions 'chess'"),
        (("eval", "--method", "dvts", "--set", "trees=0"), "trees must be at least 1, got 0"),
        (("eval", "--extract", "foo"), "no extractor 'foo'"),
        (("eval", "--questions", "0"), "questions must be at least 1"),
        (("solve", "x" * 5000), "over the context of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(args, message):
    result = run(*args, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_model_writes_no_markup(capsys):
    path = Path("[/bold] \x1b[2J", "[/b]", [1], [0.0], 0.0, "eos", None, 1.0, None)
    tree = TreeNode("root", "q", 1, None, 0.0, "live", None)
    print_solution(Session(), Solution("q", "[/b]", [("[/b]", 1.0)], [path], tree, ["[/c]"]))
    printed = capsys.readouterr().out
    assert "answer: [/b]" in printed and "[/bold]" in printed and "warning: [/c]" in printed
    assert "\x1b[2J" not in printed


@pytest.fixture
def ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[Engine, int], bool]], None]]:
    """Presses Ctrl-C once, after the first forward step after which a condition holds: of the
    engine and the number of its steps, without those by which the time of a step is measured."""
    # Started from a script, a process may have Ctrl-C ignored; from a terminal it has not.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    open_engine = Session.open

    def press_when(condition: Callable[[Engine, int], bool]) -> None:
        def opened(session: Session, *args: Any, **options: Any) -> Engine:
            engine = open_engine(session, *args, **options)
            steps = itertools.count(1)

            def step(stats: StepStats) -> None:
                if isinstance(engine.speculator, Speculation) and condition(engine, next(steps)):
                    unobserve()
                    signal.raise_signal(signal.SIGINT)

            unobserve = engine.observe(step)
            return engine

        monkeypatch.setattr(Session, "open", opened)

    yield press_when
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_prints_what_there_is(ctrl_c):
    ctrl_c(lambda engine, steps: steps == 6)
    result = run("solve", QUESTION, "--n", "4", "--threads", "1", "--json", code=130)
    assert "partial results" in result.stderr
    data = json.loads(result.stdout)
    assert data["interrupted"] and len(data["paths"]) == 4
    assert any("were stopped before their end" in text for text in data["warnings"])


def test_an_interrupted_evaluation_judges_only_what_came_to_its_end(ctrl_c):
    options = ("eval", "--threads", "1", "--json", "--questions", "40", "--n", "2")
    ctrl_c(lambda engine, steps: len(engine._scheduler.live_programs) < 35)
    result = run(*options, code=130)
    data = json.loads(result.stdout)
    assert data["interrupted"] and data["questions"] + data["failures"] == 40
    assert 5 < data["questions"] < 40
    # Cut branches would be wrong ones; those of a reasoner that came to their end are not all so.
    assert data["pass_at_1"] > 0


def test_ctrl_c_while_steps_are_measured(ctrl_c, monkeypatch):
    measure = StepCosts.measure

    def pressed(engine):
        unobserve = engine.observe(lambda _: signal.raise_signal(signal.SIGINT))
        try:
            return measure(engine)
        finally:
            unobserve()

    monkeypatch.setattr(StepCosts, "measure", pressed)
    result = run("solve", QUESTION, "--n", "4", "--threads", "1", "--json", code=130)
    assert result.stdout == "" and "before there was a result" in result.stderr


def test_ctrl_c_before_there_is_a_result(ctrl_c):
    ctrl_c(lambda engine, steps: steps == 1)
    result = run("eval", "--threads", "1", "--json", "--questions", "4", "--n", "2", code=130)
    assert result.stdout == ""
    assert "before there was a result" in result.stderr
