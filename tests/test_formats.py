"""The formats of `reasoner-formats`: training texts are what the engine computes, and it forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning import Multiverse, SelfConsistency
from parallel_decode.reasoning.fork_join import PARALLEL, reasoner_tags
from parallel_decode.tasks import TASKS, load_split
from tests.accuracy import assert_as_accurate_as_torch
from tests.tiny_model import next_logits
from tests.training_text import ASSETS, TrainingText

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ASSETS / "reasoner-formats"


@pytest.fixture
def examples(monkeypatch):
    """Scripts of examples/ can be imported."""
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner-formats", threads=1, kv_tokens=1 << 15)


@pytest.mark.parametrize("difficulty", [2, 5])
def test_the_training_form_is_what_a_union_of_keys_computes(examples, engine, difficulty):
    """Logits at all that is learned, of the masked text and of branches that are forked and joined;
    a text whose paths see each other must differ."""
    text = TrainingText.of("format_fork_join", "reasoner-formats", ("dag", difficulty))
    exact, single = text.dense(torch.float64), text.dense(torch.float32)
    tags = reasoner_tags(engine.tokenizer)
    tokens = text.tokens
    fork, join = tokens.index(tags.go) + 1, tokens.index(tags.join)
    starts = [i for i, t in enumerate(tokens) if t == tags.path]
    root = engine.prefill(tokens[:fork])
    kids = engine.fork(root, len(starts))
    compared = 0

    def follow(branch, first: int, end: int) -> None:
        nonlocal compared
        for number in range(first, end):
            engine.extend(branch, tokens=[tokens[number]])
            logits = next_logits(engine, branch)
            assert_as_accurate_as_torch(logits, exact[number], single[number])
            compared += 1

    for kid, first, end in zip(kids, starts, [*starts[1:], join], strict=True):
        follow(kid, first, end)
    joined = engine.join(root, kids, "kv_union")
    follow(joined, join, len(tokens) - 1)
    assert compared == len(tokens) - 1 - fork
    seeing = text.dense(torch.float32, text.causal)
    assert not torch.allclose(seeing[join:], single[join:].float(), atol=1e-2)
    engine.prune([root, *kids, joined])


def test_it_forks_where_there_is_something_to_fork(engine):
    """Width 8: at least three times fewer steps than its own chain; a chain gains nothing."""
    assert (FOLDER / "model.safetensors").stat().st_size < 4e6
    greedy = SamplingParams(temperature=0, max_tokens=400)
    extract = TASKS["dag"].extract_answer
    tags = reasoner_tags(engine.tokenizer)
    chain = SelfConsistency(1, greedy, extract, speculation=None)
    forked = Multiverse(tags=tags, params=greedy, extract=extract)
    for (task, difficulty), fewer in {("dag", 8): 3.0, ("chain", 12): 1.0}.items():
        problems = load_split("test", 12, 0, {(task, difficulty): 1})
        plain = engine.solve_many([p.question for p in problems], chain)
        engine.clear_prefixes()
        parallel = engine.solve_many([p.question + PARALLEL for p in problems], forked)
        assert all(solution.warnings == [] for solution in parallel)
        ratio = sum(s.usage.forward_steps for s in plain)
        ratio /= sum(s.usage.forward_steps for s in parallel)
        assert ratio >= fewer if fewer > 1 else ratio == pytest.approx(1, abs=0.05)
        right = sum(s.answer == p.answer for s, p in zip(parallel, problems, strict=True))
        assert right > 1
    assert engine.blocks_in_use == 0


def test_the_tags_of_another_model_are_missing():
    reasoner = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 10)
    with pytest.raises(ValueError, match="no token '<fork>'"):
        reasoner_tags(reasoner.tokenizer)


def test_quick_run_writes_a_whole_folder(tmp_path):
    script = ROOT / "examples" / "train_formats.py"
    command = [sys.executable, script, "--quick", "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    for name, line in (
        ("reasoner-formats", "| dag | 8 | 2 | fork-join |"),
        ("reasoner-peers", "| chain | 16 | 2 | 4 peers |"),
        ("reasoner-judge", "| dag | 6 | 2 | synthesis of 4 of the reasoner |"),
    ):
        folder = tmp_path / name
        config = json.loads((folder / "config.json").read_text())
        engine = Engine.from_pretrained(folder, kv_tokens=64)
        assert engine.model.config.vocab_size == config["vocab_size"]
        assert line in (folder / "README.md").read_text()
