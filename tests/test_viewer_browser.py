"""The page in a real browser: headless Chromium, driven over the WebDriver protocol."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from parallel_decode.engine.budget import Usage
from parallel_decode.engine.timeline import Moment
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Solution
from parallel_decode.viewer import write_html

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium with chromedriver is installed: apt-get install chromium chromium-driver",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1280,900",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id in answers, fixed by the WebDriver standard."""


class Browser:
    """One window. `base`: address of the driver."""

    def __init__(self, base: str, profile: Path) -> None:
        self._opener = build_opener(ProxyHandler({}))  # the driver is on this machine
        self._base = f"{base}/session"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._base += "/" + self.call("POST", "", wanted)["sessionId"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._base + path, data, {"Content-Type": "application/json"})
        request.method = method
        with self._opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def click(self, xpath: str) -> None:
        found = self.call("POST", "/element", {"using": "xpath", "value": xpath})
        self.call("POST", f"/element/{found[ELEMENT]}/click", {})

    def text(self, selector: str) -> str:
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return self.call("GET", f"/element/{found[ELEMENT]}/text")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            started = re.search(r"started successfully on port (\d+)", line)
            if started:
                break
        else:
            pytest.fail("chromedriver did not start")
        window = Browser(f"http://127.0.0.1:{started[1]}", tmp_path_factory.mktemp("profile"))
        yield window
        window.call("DELETE", "")
    finally:
        process.terminate()
        process.wait(timeout=20)


def node(name: str, text: str, status: str = "expanded", **rest: Any) -> TreeNode:
    return TreeNode(name, text, 9, rest.pop("score", 0.5), -0.5, status, None, **rest)


def search_of_500_nodes() -> Solution:
    """Of a branch's six children two go on, up to eight on a level; the others are pruned."""
    root = node("root", "What is 6 times 7?\n", score=None)
    level = [root]
    count = 1
    while count < 500:
        grown = []
        for parent in level:
            for child in range(min(6, 500 - count)):
                status = "expanded" if child < 2 and len(grown) < 8 else "pruned"
                text, score = f"step {count} <b>&\n", 1 / (1 + child)
                kid = node(f"{parent.name}.{child}", text, status, score=score)
                parent.children.append(kid)
                count += 1
                if status == "expanded":
                    grown.append(kid)
        level = grown
    winner = level[0] if level else root.children[0]
    winner.status, winner.answer = "finished", "42"
    held = [40 + step // 3 - 20 * (step % 40 < 3) for step in range(200)]
    moments = [Moment(step, step * 14, held[step]) for step in range(1, 200)]
    return Solution(
        "q",
        "42",
        [("42", 3.0), ("41", 1.0)],
        [],
        root,
        usage=Usage(generated_tokens=2786, peak_blocks=106),
        timeline=moments,
    )


def open_page(browser: Browser, solution: Solution, folder: Path) -> None:
    page = write_html(solution, folder / "tree.html")
    browser.call("POST", "/url", {"url": page.as_uri()})


def test_a_click_on_a_node_shows_its_whole_text(browser: Browser, tmp_path: Path):
    open_page(browser, search_of_500_nodes(), tmp_path)
    assert browser.text("#answer") == "Answer: 42"
    browser.click("//div[contains(@class,'row')][contains(., 'step 2 ')]")
    assert browser.text("#full") == "What is 6 times 7?\nstep 2 <b>&"
    assert browser.text("#name").startswith("root.1: 9 tokens, expanded")
    kept = os.environ.get("PARALLEL_DECODE_SCREENSHOT")
    if kept:
        browser.picture(Path(kept))


def test_500_nodes_are_there_and_few_are_open_at_first(browser: Browser, tmp_path: Path):
    open_page(browser, search_of_500_nodes(), tmp_path)
    rows = "[...document.querySelectorAll('#tree li:not(.group) > .row')]"
    shown = f"return {rows}.filter(row => row.offsetParent).length"
    assert browser.run(f"return {rows}.length") == 500
    assert browser.run(shown) < 150
    browser.click("//button[@id='unfold']")
    assert browser.run(shown) == 500
    browser.click("//input[@id='pruned']")
    assert browser.run(shown) < 150
    milliseconds = browser.run(
        "const [t] = performance.getEntriesByType('navigation'); return t.domComplete"
    )
    assert milliseconds < 5000


def test_chart_shows_tokens_and_blocks(browser: Browser, tmp_path: Path):
    open_page(browser, search_of_500_nodes(), tmp_path)
    words = browser.run(
        "return [...document.querySelectorAll('#chart text')].map(t => t.textContent)"
    )
    assert words == ["tokens generated: 2,786", "KV blocks held, up to: 106", "0", "199 steps"]
    points = browser.run("return document.querySelector('#chart polyline.blocks').points.length")
    assert points == 199
