"""Reward models of transformers as verifiers: the same scores, and bad files with clear errors."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from benchmarks.parity import TINY_MODELS
from parallel_decode import BestOfN, Engine, SamplingParams
from parallel_decode.model import Classifier, open_checkpoint, open_heads
from parallel_decode.reasoning import Verifier
from tests.tiny_model import tiny_engine

logging.disable_progress_bar()
QUESTION = "How much is 3 + 4?\n"
OPTIONS = {"threads": 1, "kv_tokens": 1 << 12}
TEXTS = ["3 + 4 = 7\nso it is 7", "8\n\nor 9\n", "seven"]


def classifier_folder(folder: Path, family: str, kind: str, **config: object) -> Path:
    """A random model of transformers with a head, beside the tokenizer of its causal twin."""
    next(tiny for tiny in TINY_MODELS if tiny.name.startswith(family)).save(folder)
    torch.manual_seed(1)
    settings = transformers.AutoConfig.from_pretrained(folder, **config)
    name = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "qwen3": "Qwen3"}[family]
    model = getattr(transformers, f"{name}For{kind}Classification")(settings).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def written(tmp_path) -> tuple[Engine, list]:
    """An engine that writes bytes, and three solutions."""
    next(tiny for tiny in TINY_MODELS if tiny.name == "llama-gqa").save(tmp_path / "writer")
    engine = Engine(open_checkpoint(tmp_path / "writer"), **OPTIONS)
    kids = engine.fork(engine.prefill(QUESTION), len(TEXTS))
    for kid, text in zip(kids, TEXTS, strict=True):
        engine.extend(kid, tokens=text)
    return engine, kids


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "qwen3"])
@pytest.mark.parametrize("kind", ["Sequence", "Token"])
def test_scores_are_those_of_transformers(tmp_path, written, family, kind):
    folder = classifier_folder(tmp_path, family, kind, num_labels=2)
    theirs = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained(folder)
    verifier = Verifier.from_pretrained(folder, **OPTIONS)
    assert verifier.step == ("\n" if kind == "Token" else "")
    engine, kids = written
    given = engine.run_program(verifier.step_scores(kids))
    tokenizer = verifier.engine.tokenizer
    question = tokenizer.encode(QUESTION)
    for text, scores in zip(TEXTS, given, strict=True):
        ids = question + tokenizer.encode(text, add_bos=False)
        with torch.inference_mode():
            logits = theirs.score(theirs.model(torch.tensor([ids]))[0])[0]
        last = len(ids) - 1
        newline = tokenizer.encode("\n", add_bos=False)[0]
        ends = [n for n in range(len(question), last) if ids[n] == newline and kind == "Token"]
        expected = logits[[*ends, last]].softmax(-1)[:, 1]
        assert scores == pytest.approx(expected.tolist(), abs=2e-5)
    assert verifier.engine.blocks_in_use == 0


def test_a_reward_model_of_one_label_gives_its_logit(tmp_path, written):
    folder = classifier_folder(tmp_path, "llama", "Sequence", num_labels=1)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    verifier = Verifier.from_pretrained(folder, **OPTIONS)
    engine, kids = written
    scores = engine.run_program(verifier(kids))
    tokenizer = verifier.engine.tokenizer
    for text, score in zip(TEXTS, scores, strict=True):
        ids = tokenizer.encode(QUESTION) + tokenizer.encode(text, add_bos=False)
        with torch.inference_mode():
            expected = theirs.score(theirs.model(torch.tensor([ids]))[0])[0, -1, 0]
        assert score == pytest.approx(expected.item(), abs=2e-4)


def test_a_verifier_in_a_method_counts_what_it_reads(tmp_path):
    folder = classifier_folder(tmp_path, "llama", "Token", num_labels=2)
    verifier = Verifier.from_pretrained(folder, reduce="mean", **OPTIONS)
    engine, questions = tiny_engine(), ["how much\n", "1+1\n"]
    method = BestOfN(4, verifier, params=SamplingParams(max_tokens=9), extract=lambda text: text)
    for question, solution in zip(questions, engine.solve_many(questions, method), strict=True):
        read = len(question) + sum(len(path.text) for path in solution.paths)
        assert solution.usage.delegated_tokens == read
        best = max(solution.paths, key=lambda path: path.score if path.text else -1)
        assert solution.answer == best.text
    assert engine.usage.delegated_tokens == verifier.engine.usage.computed_tokens
    assert engine.blocks_in_use == verifier.engine.blocks_in_use == 0


LAYER = (torch.ones(2, 4), torch.zeros(2))


@pytest.mark.parametrize(
    ("layers", "labels", "message"),
    [
        ([], ("a",), "1 to 4 layers, got 0"),
        ([(torch.ones(2, 4, 1), None)], ("a", "b"), r"layer 0 has shape \(2, 4, 1\)"),
        ([LAYER, (torch.ones(1, 3), None)], ("a",), r"layer 1 has shape \(1, 3\), expected"),
        ([(torch.ones(2, 4), torch.ones(3))], ("a", "b"), r"bias of score layer 0 has shape"),
        ([(torch.full((1, 4), torch.nan), None)], ("a",), "not finite"),
        ([LAYER], ("a",), "2 outputs"),
        ([LAYER], ("a", "a"), "2 outputs"),
    ],
)
def test_layers_that_do_not_fit(layers, labels, message):
    with pytest.raises(ValueError, match=message):
        Classifier(layers, labels)


def test_problem_types_and_labels():
    hidden = torch.randn(5, 4)
    layer = (torch.randn(2, 4), torch.randn(2))
    logits = torch.nn.functional.linear(hidden, *layer)
    plain = Classifier([layer], ("bad", "good"))
    assert torch.allclose(plain.scores(hidden), logits[:, 1])
    single = Classifier([layer], ("bad", "good"), "single_label_classification")
    assert torch.allclose(single.scores(hidden, "bad"), logits.softmax(-1)[:, 0])
    multi = Classifier([layer], ("bad", "good"), "multi_label_classification")
    assert torch.allclose(multi.scores(hidden, 0), logits[:, 0].sigmoid())
    for wrong in ("ugly", 2, -1):
        with pytest.raises(ValueError, match="no label"):
            plain.scores(hidden, wrong)
    with pytest.raises(ValueError, match="this model gives 3"):
        plain.logits(hidden[:, :3])
    with pytest.raises(ValueError, match="problem_type must be"):
        Classifier([layer], ("a", "b"), "guess")


def test_a_stack_of_layers_has_the_same_bits_alone_and_in_any_batch():
    layers = [(torch.randn(24, 40), torch.randn(24)), (torch.randn(3, 24), torch.randn(3))]
    tensors = {
        f"score.{2 * i}.{part}": tensor
        for i, layer in enumerate(layers)
        for part, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    head = Classifier.from_tensors(tensors, {}, 40)
    hidden = torch.randn(33, 40)
    logits = head.logits(hidden)
    expected = torch.nn.functional.linear(
        torch.nn.functional.linear(hidden, *layers[0]).relu(), *layers[1]
    )
    assert torch.allclose(logits, expected, atol=1e-4)
    for row in range(33):
        assert torch.equal(head.logits(hidden[row : row + 1])[0], logits[row])
    assert head.labels == ("0", "1", "2") and head.problem_type == "single_label_classification"


def damaged(folder: Path, **changes: object) -> None:
    tensors = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score__weight": None}, "'score.weight' is missing|no classification head"),
        ({"score__weight": torch.ones(2, 9)}, "reads 9 values of a token that has 64"),
        ({"score__bias": torch.ones(3)}, "bias of score layer 0 has shape"),
        ({"score__1__weight": torch.ones(2, 2)}, "no classification head"),
        ({"model__norm__weight": None}, "'model.norm.weight' is missing"),
    ],
)
def test_damaged_checkpoints(tmp_path, changes, message):
    folder = classifier_folder(tmp_path, "llama", "Token", num_labels=2)
    damaged(folder, **changes)
    with pytest.raises(ValueError, match=message):
        Verifier.from_pretrained(folder, **OPTIONS)


def test_what_is_no_verifier(tmp_path):
    next(tiny for tiny in TINY_MODELS if tiny.name == "llama-gqa").save(tmp_path)
    with pytest.raises(ValueError, match="no classification head"):
        Verifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no heads\.safetensors"):
        open_heads(tmp_path)
    with pytest.raises(ValueError, match="kind must be"):
        Verifier.from_pretrained(tmp_path, "good")
    with pytest.raises(ValueError, match="reduce must be one of"):
        Verifier(torch.sum, reduce="max")


def test_heads_on_the_trunk(tmp_path):
    tensors = {"score.weight": torch.randn(2, 32), "score.bias": torch.randn(2)}
    save_file(tensors, tmp_path / "heads.safetensors")
    config = {"hidden_size": 32, "id2label": {"0": "outcome", "1": "process"}}
    (tmp_path / "heads.json").write_text(json.dumps(config))
    assert open_heads(tmp_path).classifier.labels == ("outcome", "process")
    engine = tiny_engine()
    kids = engine.fork(engine.prefill("hello"), 3)
    engine.extend(kids, tokens="1e2e3", keep_hidden="e")
    process = Verifier.from_pretrained(tmp_path, "process", step="e")
    outcome = Verifier.from_pretrained(tmp_path, "outcome")
    before = engine.usage.computed_tokens
    steps = engine.run_program(process.step_scores(kids), keep=True)
    ends = engine.run_program(outcome(kids), keep=True)
    assert engine.usage.computed_tokens == before, "the states were at hand"
    assert [len(scores) for scores in steps] == [3, 3, 3] and len(ends) == 3
    states = torch.stack([kid.hidden for kid in kids])
    logits = torch.nn.functional.linear(states, tensors["score.weight"], tensors["score.bias"])
    assert ends == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-5)
    assert [s[-1] for s in steps] == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    for about, message in [
        ({"hidden_size": 31}, "token that has 31"),
        ([], "not a JSON object"),
        ({"hidden_size": "32"}, "must be an integer"),
        ({"hidden_size": 32, "statistics": "all"}, "must be a list of names"),
        ({"hidden_size": 32, "reduce": 1}, "must be a name"),
    ]:
        (tmp_path / "heads.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=message):
            open_heads(tmp_path)
    (tmp_path / "heads.json").write_text(json.dumps({"hidden_size": 31, "statistics": ["odd"]}))
    with pytest.raises(ValueError, match="unknown statistics"):
        Verifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="take no options"):
        Verifier.from_pretrained(tmp_path, threads=1)
    (tmp_path / "heads.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match=r"heads\.safetensors"):
        open_heads(tmp_path)
