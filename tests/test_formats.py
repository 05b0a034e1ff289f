"""The formats of `reasoner-formats`: training texts are what the engine computes, and it forks."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import torch

from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning import Multiverse, SelfConsistency
from parallel_decode.reasoning.fork_join import PARALLEL, reasoner_tags
from parallel_decode.tasks import TASKS, load_split
from tests.accuracy import assert_as_accurate_as_torch
from tests.tiny_model import next_logits

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "parallel_decode" / "assets" / "reasoner-formats"


trained = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="not trained yet: run examples/train_formats.py"
)


@pytest.fixture
def example(monkeypatch):
    """Imports a script of examples/."""
    monkeypatch.syspath_prepend(ROOT / "examples")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner-formats", threads=1, kv_tokens=1 << 15)


@trained
@pytest.mark.parametrize("difficulty", [2, 5])
def test_the_training_form_is_what_a_union_of_keys_computes(example, engine, difficulty):
    """Logits at all that is learned, of the masked text and of branches that are forked and joined;
    a text whose paths see each other must differ."""
    branching, form = example("branching_text"), example("format_fork_join")
    model, tokenizer, _ = example("reasoner_model").load(FOLDER)
    [problem] = load_split("test", 1, 0, {("dag", difficulty): 1})
    text = branching.BranchingText()
    prompt = text.append(tokenizer.encode(problem.question).ids, learned=False)
    form.write(text, prompt, problem, tokenizer, Random(0))
    batch = branching.TextBatch.of([text], 0)

    def dense(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # Turning by tables of the wider type costs no accuracy.
        wide = model.to(dtype)
        with torch.no_grad():
            return wide.logits(wide.hidden(batch.tokens, batch.positions, mask))[0]

    exact, single = dense(batch.mask, torch.float64), dense(batch.mask, torch.float32)
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
    causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()[None, None]
    assert not torch.allclose(dense(causal, torch.float32)[join:], single[join:].float(), atol=1e-2)
    engine.prune([root, *kids, joined])


@trained
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
    folder = tmp_path / "reasoner-formats"
    config = json.loads((folder / "config.json").read_text())
    assert (
        Engine.from_pretrained(folder, kv_tokens=64).model.config.vocab_size == config["vocab_size"]
    )
    assert "| dag | 8 | 2 |" in (folder / "README.md").read_text()
