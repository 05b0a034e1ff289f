"""The tokenizer that GGUF metadata describes: byte-level BPE ("gpt2") or SentencePiece ("llama").

GGUF has no `tokenizer.json`: it lists tokens, merges or scores, and names the regular expression
that cuts a text before the merges are applied.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from parallel_decode.model.fields import Fields
from parallel_decode.model.tokenizer import METASPACE, Tokenizer

CONTROL, USER_DEFINED = 3, 4

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_SPLIT = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# None is GPT-2's expression, which `tokenizers` has built in.
SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "gpt2": None,
    "smollm": None,
    "llama3": LLAMA3_SPLIT,
    "llama-v3": LLAMA3_SPLIT,
    "llama-bpe": LLAMA3_SPLIT,
    "qwen2": QWEN2_SPLIT,
    "deepseek-r1-qwen": QWEN2_SPLIT,
    "tekken": TEKKEN_SPLIT,
}


def tokenizer_from_gguf(raw: Mapping[str, Any]) -> Tokenizer:
    """`raw`: the metadata of a GGUF file."""
    get = Fields(raw, "GGUF metadata", prefix="tokenizer.ggml.")
    tokens = _strings(raw, "tokens")
    if len(set(tokens)) != len(tokens):
        raise ValueError("GGUF metadata: a token appears twice in the vocabulary")
    model = raw.get("tokenizer.ggml.model")
    if model == "gpt2":
        backend = _byte_level(raw, tokens)
    elif model == "llama":
        backend = _sentencepiece(raw, tokens)
    else:
        raise ValueError(f"GGUF metadata: tokenizer model {model!r} is not supported")

    types = raw.get("tokenizer.ggml.token_type")
    if types is not None and len(types) != len(tokens):
        raise ValueError(f"GGUF metadata: {len(types)} token types for {len(tokens)} tokens")
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        chosen = [] if types is None else [tokens[i] for i in np.flatnonzero(types == kind)]
        # An empty token would match everywhere.
        added = [AddedToken(t, normalized=False, special=special) for t in chosen if t]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)

    def token_id(name: str) -> int | None:
        value = get.optional_integer(name, None)
        if value is not None and not 0 <= value < len(tokens):
            raise ValueError(f"GGUF metadata: {name} {value} of {len(tokens)} tokens")
        return value

    bos_id = token_id("bos_token_id")
    ends = [token_id(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    # llama.cpp begins SentencePiece texts with bos unless the file says otherwise.
    add_bos = get.boolean("add_bos_token", model == "llama") and bos_id is not None
    return Tokenizer(backend, bos_id, [i for i in ends if i is not None], add_bos)


def _strings(raw: Mapping[str, Any], key: str) -> list[str]:
    value = raw.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is not a list of strings")
    return value


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    for left, right in merges:
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ValueError(f"GGUF metadata: merge {left!r} + {right!r} is not in the vocabulary")
    try:
        return models.BPE(vocab=vocab, merges=merges, **options)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"GGUF metadata: {error}") from error


def _byte_level(raw: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    pre = raw.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise ValueError(
            f"GGUF metadata: pre-tokenizer {pre!r} is not supported; supported: {sorted(SPLITS)}"
        )
    merges = []
    for merge in _strings(raw, "merges"):
        # Spaces are written as U+0120, so the only one here separates the two halves.
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    split = SPLITS[pre]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token as it is, even where no merges lead to it.
    backend = tokenizers.Tokenizer(_bpe(vocab, merges, ignore_merges=split == LLAMA3_SPLIT))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)]
    if split is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    if pre == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if split == QWEN2_SPLIT:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(raw: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    get = Fields(raw, "GGUF metadata", prefix="tokenizer.ggml.")
    scores = raw.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise ValueError(f"GGUF metadata: {len(tokens)} tokens need as many scores")
    unknown = get.integer("unknown_token_id", 0)
    if not 0 <= unknown < len(tokens):
        raise ValueError(f"GGUF metadata: unknown token {unknown} of {len(tokens)}")
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = _merges_of_scores(vocab, scores)
    backend = tokenizers.Tokenizer(
        _bpe(vocab, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    prefix = get.boolean("add_space_prefix", True)
    replace = normalizers.Replace(" ", METASPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(METASPACE), replace]) if prefix else replace
    )
    steps: list[Any] = [
        decoders.Replace(METASPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_of_scores(vocab: dict[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores highest: every split of every token is
    a merge, ranked by the token's score."""
    found = []
    for token, i in vocab.items():
        # SentencePiece makes pieces of 16 characters; the bound keeps a damaged file linear.
        if 1 < len(token) <= 128:
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in vocab and right in vocab:
                    found.append((-float(scores[i]), i, vocab[left], vocab[right], left, right))
    # Ids break ties: NaN scores of a damaged file would make the order arbitrary, not wrong.
    found.sort(key=lambda merge: merge[:4])
    return [(left, right) for *_, left, right in found]
