"""The tree in the terminal and as a page."""

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from parallel_decode.engine.budget import Usage
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.viewer import render_tree, write_html

EVIL = "</script><script>alert(1)</script>[bold]&<b>"


def node(name: str, text: str, status: str = "live", **rest) -> TreeNode:
    return TreeNode(name, text, len(text), rest.pop("score", None), -0.5, status, None, **rest)


@pytest.fixture
def solution() -> Solution:
    leaves = [node(f"0.{i}", "same\n", "pruned", score=-1.0) for i in range(3)]
    tree = node(
        "root", "question", children=[node("0", EVIL, "finished", score=0.25, children=leaves)]
    )
    path = Path(EVIL, "7", [1], [float("nan")], -0.5, "eos", 0.25, 1.0, None)
    return Solution("question", "7", [("7", 1.0)], [path], tree, usage=Usage(generated_tokens=5))


def test_terminal_tree_shows_texts_as_they_are_and_counts_equal_leaves(solution):
    console = Console(width=120, record=True, file=StringIO())
    console.print(render_tree(solution.tree))
    text = console.export_text()
    assert "question" in text and "[bold]&<b>" in text
    assert text.count("same") == 1 and "×3" in text and "0.25" in text
    console.print(render_tree(solution.tree, show_pruned=False))
    assert "same" not in console.export_text()


def test_page_holds_everything_and_runs_nothing_of_the_model(solution, tmp_path):
    page = write_html(solution, tmp_path / "deep" / "tree.html").read_text()
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    assert "http://" not in page and "https://" not in page
    [data] = re.findall(r"const solution = (.*);", page)
    parsed = json.loads(data)
    assert parsed["tree"]["children"][0]["text"] == EVIL
    assert len(parsed["tree"]["children"][0]["children"]) == 3
    assert parsed["usage"]["generated_tokens"] == 5
