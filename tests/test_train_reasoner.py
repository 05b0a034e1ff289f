"""The training script runs end to end, and what it writes is what Hugging Face's loaders read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("assets")
    script = ROOT / "examples" / "train_reasoner.py"
    subprocess.run(
        [sys.executable, script, "--quick", "--out", out], cwd=ROOT, check=True, timeout=240
    )
    return out


@pytest.mark.parametrize("name", ["reasoner", "reasoner-draft"])
def test_quick_run_writes_a_whole_folder(folders, name):
    folder = folders / name
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<eos>") == config["eos_token_id"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        shape = file.get_slice("model.embed_tokens.weight").get_shape()
    assert shape == [config["vocab_size"], config["hidden_size"]]
    assert "| all |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["reasoner", "reasoner-draft"])
@pytest.mark.parametrize(
    "text",
    ["chain mod 29; a=7; b=a*3; b?\n", "a\n\n  b\t", "007 123 4567", "naïve 漢字 🙂", ""],
    ids=["question", "space", "digits", "unicode", "empty"],
)
def test_bundled_tokenizer_gives_every_text_back(name, text):
    file = ROOT / "parallel_decode" / "assets" / name / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("number", ["0", "9", "10", "52", "99"])
def test_a_number_is_one_token(number):
    file = ROOT / "parallel_decode" / "assets" / "reasoner" / "tokenizer.json"
    ids = Tokenizer.from_file(str(file)).encode(number, add_special_tokens=False).ids
    assert len(ids) == 1


def test_bundled_models_are_small():
    files = (ROOT / "parallel_decode" / "assets").glob("reasoner*/*")
    assert sum(file.stat().st_size for file in files) < 25e6
