"""Drafters by their names, and the choice of layers."""

import json

import pytest
from typer.testing import CliRunner

from parallel_decode.cli.main import app
from parallel_decode.engine import Engine, SamplingParams
from parallel_decode.speculation import (
    EagleDrafter,
    MedusaDrafter,
    SkipLayersDrafter,
    StepCosts,
    TrainedHeads,
    choose_layers,
    layer_choice,
    speculate,
)
from parallel_decode.speculation.speculate import NAMED
from parallel_decode.speculation.step_times import StepTimes
from parallel_decode.tasks import load_split
from tests.test_scheduler import decoding
from tests.test_speculation import state, token_ids
from tests.tiny_model import tiny_checkpoint, tiny_engine

COSTS = StepCosts([1, 64], [1.0, 1.01])
[QUESTION] = [problem.question for problem in load_split("test", 1)]


@pytest.fixture(scope="module")
def reasoner() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=8192)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_enough(name, reasoner):
    def said() -> list:
        kids = reasoner.fork(reasoner.prefill(QUESTION), 3)
        params = [SamplingParams(temperature=t, max_tokens=60) for t in (0.0, 0.7, 1.0)]
        reasoner.extend(kids, params)
        states = list(map(state, kids))
        reasoner.prune([kids[0].parent, *kids])
        return states

    reasoner.speculator = None
    expected = said()
    speculation = speculate(reasoner, name, [QUESTION])
    # As if rows were free, so that it drafts whatever this machine is busy with.
    speculation.times = StepTimes(StepCosts([1, 64], [1.0, 1.0]))
    assert said() == expected
    assert speculation.stats.drafted > 0
    reasoner.speculator = None
    reasoner.clear_prefixes()
    assert reasoner.cache.num_used == 0


def test_the_bundled_heads_are_worth_having(reasoner):
    """Far more often right than by chance, on a question that they were not trained on."""
    for make, least in ((EagleDrafter, 2.5), (MedusaDrafter, 1.3)):
        speculation = speculate(reasoner, make(reasoner))
        speculation.times = StepTimes(COSTS)
        kids = reasoner.fork(reasoner.prefill(QUESTION), 4)
        reasoner.extend(kids, SamplingParams(max_tokens=100))
        assert speculation.stats.tokens_per_step > least
        reasoner.prune([kids[0].parent, *kids])
    reasoner.speculator = None


def test_bundled_heads_are_small(reasoner):
    path = TrainedHeads.load("reasoner", reasoner.config).path
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 2e6
    assert "tokens a step" in (path.parent / "README.md").read_text()


@pytest.mark.parametrize("name", ["eagle", "medusa"])
def test_a_model_without_heads(name):
    engine = tiny_engine()
    with pytest.raises(ValueError, match="there are no trained heads at 'tiny'"):
        speculate(engine, name)
    assert engine.speculator is None


def test_the_command_line_knows_the_names():
    def paths(*more: str) -> list:
        line = ["solve", QUESTION, "--n", "2", "--max-tokens", "20", "--threads", "1", "--json"]
        result = CliRunner().invoke(app, [*line, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["paths"]

    assert paths("--draft", "skip-layers") == paths()


# ---- layers ----


def with_idle_layers(num_layers: int, idle: list[int]) -> Engine:
    """These layers add nothing to what passes through them."""
    checkpoint = tiny_checkpoint(num_hidden_layers=num_layers)
    for layer in idle:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            checkpoint.tensors[f"model.layers.{layer}.{name}.weight"].zero_()
    return tiny_engine(checkpoint)


@pytest.mark.parametrize(("num_layers", "idle"), [(4, [1, 2]), (7, [0, 3, 5])])
def test_layers_that_do_nothing_are_skipped(num_layers, idle, monkeypatch):
    """In all combinations of few layers, and one after the other of many."""
    monkeypatch.setattr(
        layer_choice._Texts,
        "seconds",
        lambda texts, engine, layers, depth: 0.05 * depth * len(layers._model.layers) / num_layers,
    )
    engine = with_idle_layers(num_layers, idle)
    choice = choose_layers(engine, [token_ids(20), token_ids(9)], COSTS)
    assert choice.kept == tuple(layer for layer in range(num_layers) if layer not in idle)
    assert choice.tokens_per_step == choice.depth + 1
    drafting = 0.05 * choice.depth * len(choice.kept) / num_layers
    steps = COSTS.seconds[1 + choice.depth] + drafting
    assert choice.predicted_speedup == pytest.approx(
        choice.tokens_per_step / steps * COSTS.seconds[1]
    )
    assert engine.blocks_in_use == 0 and engine.speculator is None


def test_what_is_expected_of_layers_is_what_they_do():
    """Tokens a step, on the texts that they were chosen by."""
    engine = tiny_engine(tiny_checkpoint(num_hidden_layers=3, scale=0.12))
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    texts = layer_choice._Texts(engine, [token_ids(20), token_ids(31)], params)
    layers = layer_choice.fused_layers(engine, (0, 2))
    right = texts.right(engine, layers)
    assert 0 < right[0] <= 1 and (right[1:] <= right[:-1]).all()
    drafter = SkipLayersDrafter(engine, (0, 2), min_prob=0.0, num_siblings=0)
    hits = []
    for place in texts._places:
        branch = place.request.branch
        [fork] = engine.fork(branch, at=place.at + 1)
        engine.rollback(fork, place.at + 1)
        fork._forget_stored(place.at)
        request = place.request._replace(branch=fork)
        [tree] = drafter.propose([request], [1])
        hits.append(tree.tokens[0] == branch.tokens[place.at + 1])
        fork.release()
    assert right[0] == pytest.approx(sum(hits) / len(hits))
    texts.release()


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([], decoding(20), "give it a prompt"),
        ([[3, 4]], decoding(4), "it said no 10 tokens"),
    ],
    ids=["no prompt", "too short"],
)
def test_layers_need_texts(prompts, params, message):
    engine = tiny_engine()
    with pytest.raises(ValueError, match=message):
        choose_layers(engine, prompts, COSTS, params)
    assert engine.blocks_in_use == 0 and engine.speculator is None
