"""The tree of a solution as one self-contained HTML file."""

import json
from pathlib import Path

from parallel_decode.reasoning.solution import Solution

TEMPLATE = Path(__file__).with_name("tree.html")
MARK = "/*SOLUTION*/null"


def write_html(solution: Solution, path: Path) -> Path:
    """Writes the file, with its folder -> the path. Nothing in it is fetched from elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_html(solution), encoding="utf-8")
    return path


def render_html(solution: Solution) -> str:
    """The page's text. What a model wrote stands in a JSON string and is shown as text only."""
    data = {**solution.as_dict(), "timeline": solution.timeline}
    for item in data["paths"]:
        del item["tokens"], item["logprobs"]
    text = json.dumps(data, allow_nan=False, ensure_ascii=True)
    # "</script>" in a model's text would end the script element, "<!--" would open a comment.
    text = text.replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace(MARK, text, 1)
