"""The tree in the terminal and as a page."""

import json
import re
from io import StringIO
from itertools import pairwise

import pytest
from rich.console import Console

from parallel_decode.engine import SamplingParams
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.timeline import MAX_POINTS, Moment, Timeline
from parallel_decode.reasoning import SelfConsistency
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.viewer import printable, render_tree, write_html
from parallel_decode.viewer.html import render_html
from tests.tiny_model import tiny_engine

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
    console.print(render_tree(solution.tree, max_pruned=0))
    text = console.export_text()
    assert "same" not in text and "… 3 pruned" in text


def drawn(root: TreeNode, **options) -> list[str]:
    console = Console(width=60, file=StringIO())
    console.print(render_tree(root, **options))
    return console.file.getvalue().splitlines()


def test_what_goes_on_alone_stands_below_and_few_pruned_branches_are_shown():
    dead = [node(f"0.{i}", f"dead{i}", "pruned", score=-float(i)) for i in range(1, 5)]
    last = node("0.0.0", "end", "finished", answer="7")
    going = node("0.0", "middle", "expanded", children=[last])
    first = node("0", "first", "expanded", children=[dead[3], going, *dead[:3]])
    other = node("1", "other")
    assert drawn(node("root", "prompt", "expanded", children=[first, other]), max_pruned=2) == [
        "prompt",
        "├── first",
        "│   ├── -1  dead1",
        "│   ├── -2  dead2",
        "│   └── … 2 more pruned",
        "├── ↓ middle",
        "├── ↓ [7]  end",
        "└── other",
    ]
    assert len(drawn(first, max_pruned=None)) == 7


def test_a_model_cannot_drive_the_terminal():
    evil = "a\x1b]0;title\x07b\x1b[2Jc\u202ed"
    assert printable(evil) == "a\ufffd]0;title\ufffdb\ufffd[2Jc\ufffdd"
    assert printable("line\r\n\tnext") == "line\n\tnext"
    [line] = drawn(node("root", evil, answer=evil))
    assert line.isprintable()


def test_a_deep_tree_is_drawn():
    root = deepest = node("root", "prompt")
    for i in range(2000):
        deepest.children = [node(str(i), "step")]
        deepest = deepest.children[0]
    assert len(drawn(root)) == 2001


def test_long_texts_take_one_line():
    assert len(drawn(node("root", "word " * 100))) == 1


def test_page_holds_everything_and_runs_nothing_of_the_model(solution, tmp_path):
    page = write_html(solution, tmp_path / "deep" / "tree.html").read_text()
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    assert "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page and "innerHTML" not in page
    [data] = re.findall(r"const solution = (.*);", page)
    parsed = json.loads(data)
    assert [row["parent"] for row in parsed["tree"]] == [None, 0, 1, 1, 1]
    assert parsed["tree"][1]["text"] == EVIL and parsed["tree"][1]["children"] == [2, 3, 4]
    assert parsed["usage"]["generated_tokens"] == 5


def test_page_of_500_nodes_is_small():
    """What is shared is written once: the page grows with the nodes, not with their paths."""
    root = node("root", "question " * 50)
    level = [root]
    for depth in range(8):
        for number, parent in enumerate(level):
            for child in range(2 if len(level) < 64 else 1):
                text = f"step {depth}.{number}.{child}: " + "because of that " * 3 + "\n"
                kid = node(f"{parent.name}.{child}", text, score=0.5)
                parent.children = [*parent.children, kid]
        level = [child for parent in level for child in parent.children]
    nodes = list(root.walk())
    extra = [node(f"x{i}", "pruned step " * 5, "pruned") for i in range(500 - len(nodes))]
    root.children = [*root.children, *extra]
    moments = [Moment(step, step * 16, step) for step in range(1, 257)]
    solution = Solution("q", "7", [("7", 1.0)], [], root, timeline=moments)
    text = sum(len(n.text) for n in root.walk())
    assert len(list(root.walk())) == 500
    assert len(render_html(solution)) < text + 500 * 300 + 30_000


@pytest.mark.parametrize("num_steps", [3, 256, 257, 5000])
def test_timeline_is_bounded_and_evenly_spread(num_steps: int):
    timeline = Timeline()
    for step in range(1, num_steps + 1):
        timeline.add(step, 2 * step, 7)
    steps = [moment.step for moment in timeline.moments]
    assert min(num_steps, MAX_POINTS // 2) <= len(steps) <= MAX_POINTS
    assert len({b - a for a, b in pairwise(steps)}) == 1
    assert steps[-1] > num_steps - (steps[1] - steps[0])
    assert all(moment.generated_tokens == 2 * moment.step for moment in timeline.moments)


def test_solution_tells_tokens_and_blocks_over_time():
    engine = tiny_engine()
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    solution = engine.solve("hello", SelfConsistency(4, params, speculation=None))
    tokens = [moment.generated_tokens for moment in solution.timeline]
    assert tokens == sorted(tokens) and tokens[-1] == 4 * 11  # the last are computed for nobody
    assert max(moment.blocks for moment in solution.timeline) == solution.usage.peak_blocks
