"""The command line as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from parallel_decode.cli.main import app

runner = CliRunner()
QUESTION = "chain mod 10; a=4; b=a+7; c=b*7; c?"


def run(*args: str, code: int = 0):
    result = runner.invoke(app, list(args))
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def test_help_names_every_command():
    text = run("--help").output
    for command in ("demo", "solve", "search", "eval", "models", "info"):
        assert command in text
        assert "--help" in run(command, "--help").output


def test_solve_votes_and_prints_json():
    data = json.loads(run("solve", QUESTION, "--n", "8", "--threads", "1", "--json").stdout)
    assert len(data["paths"]) == 8
    assert data["answer"] == data["votes"][0][0]
    assert data["usage"]["generated_tokens"] == sum(len(p["tokens"]) for p in data["paths"])
    again = json.loads(run("solve", QUESTION, "--n", "8", "--threads", "1", "--json").stdout)
    assert again["votes"] == data["votes"]
    other = run("solve", QUESTION, "--n", "8", "--seed", "1", "--temperature", "2", "--json")
    assert json.loads(other.stdout)["paths"] != data["paths"]


def test_solve_in_words():
    output = run("solve", QUESTION, "--n", "4", "--threads", "1").output
    assert "answer:" in output and "tokens stored for" in output


def test_search_draws_a_tree_and_writes_the_page(tmp_path):
    page = tmp_path / "tree.html"
    output = run("search", QUESTION, "--width", "2", "--expand", "2", "--html", str(page)).output
    assert ("answer:" in output and "├" in output) or "└" in output
    assert "const solution" in page.read_text()


def test_eval_reports_every_figure():
    data = json.loads(run("eval", "--questions", "6", "--n", "4", "--json").stdout)
    assert data["questions"] == 6 and data["n"] == 4
    assert 0 <= data["pass_at_1"] <= data["pass_at_n"] <= 1
    assert data["gain_low"] <= data["gain"] <= data["gain_high"]
    assert data["gain"] == pytest.approx(data["maj_at_n"] - data["pass_at_1"])
    one_task = json.loads(
        run("eval", "--questions", "3", "--n", "2", "--task", "dag", "--json").stdout
    )
    assert list(one_task["by_task"]) == ["dag"]


def test_models_and_info():
    names = [row["name"] for row in json.loads(run("models", "--json").stdout)["models"]]
    assert names == ["reasoner", "reasoner-draft", "smollm2"]
    assert json.loads(run("info", "--json").stdout)["block_size"] == 16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("solve", QUESTION, "--model", "nothing"), "no model 'nothing'"),
        (("solve", QUESTION, "--temperature", "-1"), "temperature must be"),
        (("solve", QUESTION, "--n", "0"), "n must be at least 1, got 0"),
        (("solve", QUESTION, "--extract", "foo"), "no extractor 'foo'"),
        (("solve", QUESTION, "--dtype", "int3"), "dtype must be one of"),
        (("eval", "--task", "chess"), "no task 'chess'"),
        (("eval", "--questions", "0"), "questions must be at least 1"),
        (("solve", "x" * 5000), "over the context of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(args, message):
    result = run(*args, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.output
