"""The experiment on tools: graphs, scripts, and makespans that are known beforehand."""

import argparse

import numpy as np
import pytest

from benchmarks.experiments import page, tools
from benchmarks.experiments.call_graph import SHAPES, CallGraph
from parallel_decode import Engine

STEP = 0.01


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 13)


def drawn(shape: str) -> CallGraph:
    return CallGraph.drawn(shape, 1, 1.0, 3.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_graphs(shape):
    graph = drawn(shape)
    assert graph == drawn(shape) and len(graph.seconds) == len(graph.needs) == 6
    assert all(k < n for n, needs in enumerate(graph.needs) for k in needs)
    assert sorted(n for level in graph.levels for n in level) == list(range(6))
    total, longest = sum(graph.seconds), max(graph.seconds)
    expected = {"independent": longest, "chain": total}
    assert longest <= graph.critical_path <= total
    assert graph.critical_path == pytest.approx(expected.get(shape, graph.critical_path))
    if shape == "diamond":
        middle = max(graph.seconds[1:5])
        assert graph.critical_path == graph.seconds[0] + middle + graph.seconds[5]


@pytest.mark.parametrize("name", tools.ARMS)
@pytest.mark.parametrize("shape", ["diamond", "chain"])
def test_makespans(engine, shape, name):
    """With steps at no time the calls take what is claimed; with calls at no time, the steps do;
    with both no more than their sum, and no less than the longer."""
    graph, arm = drawn(shape), tools.ARMS[name]
    without_steps = tools.on_simulated_clock(engine, [graph], arm, 0.0)[0].makespan_s
    claimed = arm.tools_s(graph)
    if arm.slots is None:
        assert without_steps == pytest.approx(claimed)
    else:
        assert claimed - 1e-9 <= without_steps <= sum(graph.seconds) + 1e-9
    [both] = tools.on_simulated_clock(engine, [graph], arm, STEP)
    decode = both.forward_steps * STEP
    assert max(decode, without_steps) - STEP <= both.makespan_s <= decode + without_steps + STEP
    if name == "sequential":
        assert both.makespan_s == pytest.approx(decode + sum(graph.seconds), abs=0.1)
    instant = CallGraph([0.0] * 6, graph.needs)
    [alone] = tools.on_simulated_clock(engine, [instant], arm, STEP)
    assert alone.makespan_s == pytest.approx(decode, abs=0.2)
    # With another one in the batch it misses a step at each stop at the most.
    beside, _ = tools.on_simulated_clock(engine, [graph, drawn("random")], arm, STEP)
    assert beside.makespan_s == pytest.approx(both.makespan_s, abs=20 * STEP)


def test_rows_and_real_sleeps(engine):
    args = argparse.Namespace(step_seconds=STEP)
    shaped = {
        shape: [CallGraph.drawn(shape, seed, 0.02, 0.05) for seed in range(2)]
        for shape in ("independent", "chain")
    }
    for clock in tools.CLOCKS:
        rows = list(tools.rows(engine, clock, shaped, args))
        assert rows[0]["gain"] == 0 and rows[0]["times_faster"] == 1
        assert len(rows) == 2 * {"simulated": 6, "real": 4}[clock]
        for row in rows:
            path = float(np.mean([graph.critical_path for graph in shaped[row["shape"]]]))
            assert row["critical_path_s"] == pytest.approx(path)
            assert row["makespan_s"] >= row["critical_path_s"] and row["over_critical_path"] >= 1
    text = "\n".join(page.tools(rows))
    assert "The first plans are scripted" in text and "- real, chain: " in text
    assert engine.blocks_in_use == 0


def test_a_script_that_is_not_followed_is_no_measurement(engine, monkeypatch):
    monkeypatch.setattr(tools, "DONE", "nothing of it")
    monkeypatch.setattr(tools, "_done", lambda text: None)
    with pytest.raises(RuntimeError, match="not followed"):
        tools.on_simulated_clock(engine, [drawn("chain")], tools.ARMS["LLMCompiler"], 0.0)
