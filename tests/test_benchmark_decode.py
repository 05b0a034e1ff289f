"""`benchmarks.decode`: the work it gives, what it refuses, its ratios, and a small run of ours."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decode
from benchmarks.contestant import Contestant, Run, Workload
from benchmarks.engine_contestant import EngineContestant
from benchmarks.llama_cpp_context import Configuration
from benchmarks.llama_cpp_peer import ATTENTION, FORMATS, LlamaCpp, draw

ROOT = Path(__file__).parents[1]
TREE = Workload(8, 5, 3, levels=((2, 3), (2, 4)))


class Scripted(Contestant):
    """Says the same tokens always, and takes the same time."""

    def __init__(self, name: str, dtype: str, tokens: list[int], rate: float = 1.0) -> None:
        self.name, self.dtype, self.kv_dtype = name, dtype, dtype
        self.tokens, self.rate = tokens, rate
        self.turns = 0

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        return self.tokens[:num_tokens]

    def run(self, ids: list[int], work: Workload, seconds: float) -> Run:
        self.turns += 1
        steps = [work.branches / self.rate] * work.suffix
        return Run(work.stored / self.rate, steps, kv_bytes=1)


# ---- the work ----


def test_a_tree_holds_each_node_once():
    ids = list(range(100))
    levels = TREE.texts(ids)
    assert [len(texts) for texts in levels] == [1, 2, 4]
    assert sum(len(text) for texts in levels for text in texts) == TREE.stored == 5 + 6 + 16
    prompts = TREE.prompts(ids)
    assert len({tuple(prompt) for prompt in prompts}) == TREE.nodes == 4
    assert {len(prompt) for prompt in prompts} == {TREE.context} == {12}
    assert prompts[2] == levels[0][0] + levels[1][1] + levels[2][2]
    assert TREE.fan == 2 and TREE.tree == "5, 2 x 3, 2 x 4"
    assert Workload(4, 7, 3).prompts(ids) == [ids[:7]]
    assert Workload(4, 7, 3).tree is None


def test_full_and_quick_runs_are_what_the_model_takes():
    for work in (*decode.FULL, *decode.QUICK):
        assert work.context + work.suffix < 8192
        assert work.fan * work.nodes == work.branches
    figure = [w for w in decode.FULL if not w.tree and w.suffix]
    assert {w.branches for w in figure if w.prefix == 1024} == {1, 4, 16, 32, 64}
    assert {w.prefix for w in figure if w.branches == 32} == {256, 512, 1024, 2048, 4096}


# ---- correctness comes first ----


def test_agreement_is_counted():
    ours = Scripted("parallel_decode", "float32", [1, 2, 3, 4])
    peer = Scripted("llama.cpp", "int4", [1, 2, 9, 4])
    assert decode.check_agreement([ours, peer], [0], 4) == {ours.label: 4, peer.label: 2}


@pytest.mark.parametrize("dtype, tokens", [("float32", 9), ("float16", 2), ("bfloat16", 2)])
def test_disagreement_stops_the_run(dtype: str, tokens: int):
    ours = Scripted("parallel_decode", "float32", list(range(10)))
    peer = Scripted("peer", dtype, [*range(tokens), -1, -1])
    with pytest.raises(SystemExit, match="nothing was timed"):
        decode.check_agreement([ours, peer], [0], 10)


def test_sixteen_bits_may_differ_late():
    ours = Scripted("parallel_decode", "float32", list(range(10)))
    half = Scripted("peer", "float16", [*range(decode.AGREEING_TOKENS), -1, -1])
    assert decode.check_agreement([ours, half], [0], 10)[half.label] == decode.AGREEING_TOKENS


# ---- rows ----


def test_ratios_are_to_the_best_and_to_the_same_width():
    contestants = [
        Scripted("parallel_decode", "float32", [], 100.0),
        Scripted("parallel_decode", "int8", [], 90.0),
        Scripted("llama.cpp", "int8", [], 30.0),
        Scripted("llama.cpp", "int4", [], 50.0),
    ]
    rows = decode.measure(contestants, list(range(100)), TREE, rounds=3, seconds=1.0)
    assert [one.turns for one in contestants] == [3] * 4
    assert [row["ratio_to_llama_cpp"] for row in rows] == pytest.approx([2.0, 1.8, 0.6, 1.0])
    same = [row["ratio_to_llama_cpp_same_width"] for row in rows]
    assert same[0] is None and same[1:] == pytest.approx([3.0, 1.0, 1.0])
    assert rows[0]["decode_tokens_per_s"] == pytest.approx(100.0)
    assert rows[0]["tree"] == TREE.tree


def test_who_does_not_take_a_row_is_not_in_it():
    class Small(Scripted):
        def takes(self, work: Workload) -> bool:
            return work.branches < 8

    contestants = [Scripted("parallel_decode", "float32", []), Small("transformers", "float32", [])]
    for work, names in (
        (TREE, {"parallel_decode"}),
        (Workload(4, 7, 3), {"parallel_decode", "transformers"}),
    ):
        rows = decode.measure(contestants, list(range(100)), work, rounds=1, seconds=1.0)
        assert {row["engine"] for row in rows} == names
    assert contestants[1].turns == 1


def test_without_llama_cpp_ratios_are_to_ours():
    contestants = [
        Scripted("parallel_decode", "float32", [], 100.0),
        Scripted("transformers", "float32", [], 25.0),
    ]
    prompt = Workload(1, 50, 0)
    rows = decode.measure(contestants, list(range(100)), prompt, rounds=1, seconds=1.0)
    assert [row["ratio_to_parallel_decode"] for row in rows] == pytest.approx([1.0, 0.25])
    assert rows[0]["decode_tokens_per_s"] is None
    assert rows[0]["prefill_tokens_per_s"] == pytest.approx(100.0)


# ---- llama.cpp's choice, without llama.cpp ----


class Costs(LlamaCpp):
    """Trials of made-up cost: split is quick, flash attention slow, and weights by width."""

    def __init__(self, quick: bool) -> None:
        self.quick, self._chosen, self._prompts = quick, {}, {}
        self.tried: list[Configuration] = []

    def cost(self, config: Configuration, ids: list[int], work: Workload, give_up: float) -> float:
        self.tried.append(config)
        weights = {"F16": 3.0, "BF16": 2.5, "Q8_0": 2.0, "Q4_0": 1.0, "Q4_1": 1.5}
        return weights[config.weights] * (3 if config.unified else 1) * (2 if config.flash else 1)


def test_llama_cpp_is_taken_in_its_best_configuration():
    library = Costs(quick=False)
    chosen = library.choose([], Workload(32, 1024, 64))
    assert {dtype: config.weights for dtype, config in chosen.items()} == {
        "float16": "BF16",
        "int8": "Q8_0",
        "int4": "Q4_0",
    }
    assert not any(config.unified or config.flash for config in chosen.values())
    assert set(ATTENTION) <= set(library.tried)  # and only the best of them split
    tried = len(library.tried)
    assert library.choose([], Workload(32, 1024, 64)) is chosen and len(library.tried) == tried


def test_one_branch_needs_no_split_trials_and_a_prompt_tries_batches():
    library = Costs(quick=False)
    library.choose([], Workload(1, 1024, 0))
    assert all(config.unified for config in library.tried)
    assert len({config.ubatch for config in library.tried}) > 1


def test_a_quick_run_tries_nothing():
    library = Costs(quick=True)
    assert set(library.choose([], Workload(32, 512, 12))) == set(FORMATS)
    assert not library.tried


def test_draws_follow_the_logits():
    logits = np.log(np.array([[0.0, 0.25, 0.75, 0.0]] * 2000, np.float32) + 1e-30)
    drawn = draw(logits, np.random.default_rng(0))
    assert set(drawn) == {1, 2}
    assert np.mean(np.array(drawn) == 2) == pytest.approx(0.75, abs=0.03)


# ---- ours ----


def test_the_engine_decodes_a_tree():
    ours = EngineContestant("reasoner", "float32", "float32", threads=1, kv_tokens=4096)
    ids = ours.engine.tokenizer.encode("countdown 94 from 11 9 5\n" * 4)
    run = ours.run(ids, TREE, seconds=1.0)
    assert len(run.step_seconds) == TREE.suffix and run.decode_rate(TREE.branches) > 0
    assert run.kv_bytes > 0 and ours.engine.blocks_in_use == 0
    prompt = ours.run(ids, Workload(1, 20, 0), seconds=1.0)
    assert prompt.step_seconds == [] and prompt.decode_rate(1) is None


def test_the_command_writes_rows(tmp_path: Path):
    path = tmp_path / "decode.json"
    args = ["--model", "reasoner", "--branches", "2,4", "--prefix", "16", "--suffix", "3"]
    command = [sys.executable, "-m", "benchmarks.decode", "--quick", *args, "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert [row["branches"] for row in report["rows"]] == [2, 2, 4, 4]
    assert [row["dtype"] for row in report["rows"]] == ["float32", "int8"] * 2
    assert report["conditions"]["command"].startswith("python -m benchmarks.decode --engines")


def test_unknown_peers_are_refused():
    command = [sys.executable, "-m", "benchmarks.decode", "--peers", "nobody"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "no peer 'nobody'" in done.stderr
