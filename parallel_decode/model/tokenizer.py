"""`Tokenizer`: text to token ids and back, over the `tokenizers` library, and `StreamDecoder`.

Decoding goes by bytes: every token has a fixed byte string, a text is the UTF-8 reading of their
concatenation. So a stream may be cut between any two tokens and still gives the same text, and a
constraint or a stop string can be checked on bytes. The two families have one rule each:

- byte-level BPE (Llama 3, Qwen, SmolLM): each character of a token stands for one byte;
- SentencePiece (Llama 2, Mistral): U+2581 stands for a space, `<0x0A>` for one byte, and the first
  space of a text is dropped, since encoding adds it.
"""

import codecs
import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

METASPACE = "\u2581"


class Tokenizer:
    """Wraps a `tokenizers.Tokenizer`.

    Args:
        backend: its decoder must be one of the two families above.
        bos_id, eos_ids: None and () for a vocabulary without them.
        add_bos: whether `encode` begins a text with `bos_id` unless told otherwise.
        control_ids: tokens that `decode` leaves out, next to the special tokens of the backend.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        add_bos: bool = False,
        control_ids: Collection[int] = (),
    ) -> None:
        self.backend = backend
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.add_bos = add_bos
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special).union(
            self.eos_ids, control_ids, () if bos_id is None else (bos_id,)
        )
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        byte_level, self.strips_space = _decoding_rule(backend)
        read = _byte_level_bytes if byte_level else _sentencepiece_bytes
        # Ids may have gaps; those tokens have no bytes.
        self._bytes = [b""] * self.vocab_size
        for token, token_id in vocab.items():
            literal = token_id in added
            self._bytes[token_id] = token.encode("utf-8") if literal else read(token)

    @classmethod
    def from_file(
        cls,
        path: Path,
        bos: int | str | None = None,
        eos: Iterable[int | str] = (),
        add_bos: bool | None = None,
    ) -> "Tokenizer":
        """From a `tokenizer.json`. `bos` and `eos` are ids or tokens; without an `add_bos` the
        tokenizer's post-processor decides."""
        try:
            backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path}: not a readable tokenizer: {error}") from error
        bos_id = None if bos is None else _known_id(backend, bos, path)
        eos_ids = [_known_id(backend, end, path) for end in eos]
        if add_bos is None:
            begins = backend.encode("a").ids[:1]
            plain = backend.encode("a", add_special_tokens=False).ids[:1]
            add_bos = begins == [bos_id] != plain
        return cls(backend, bos_id, eos_ids, bool(add_bos) and bos_id is not None)

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Token ids of `text`. Special tokens written in the text become those tokens; a byte for
        which a vocabulary has neither a token nor an unknown token is lost, as in transformers.

        A rendered chat template already holds its bos token: encode it with `add_bos=False`.
        """
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if self.add_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise ValueError("this tokenizer has no bos token")
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            for token_id in ids:
                self.token_bytes(token_id)  # names the one that is outside
        pieces = [self._bytes[token_id] for token_id in ids]
        if skip_special_tokens:
            special = self.special_ids
            pieces = [
                piece for token, piece in zip(ids, pieces, strict=True) if token not in special
            ]
        text = b"".join(pieces)
        if self.strips_space:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text, special tokens as they are written."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id must lie in [0, {self.vocab_size}), got {token_id}")
        return self._bytes[token_id]

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, for example `<|im_end|>`."""
        return self.backend.token_to_id(token)


class StreamDecoder:
    """Text of a growing sequence of tokens: each `push` returns what is now certain.

    A character whose bytes are spread over several tokens appears with the last of them. Pushes
    followed by `finish` give exactly `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.strips_space

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._at_start and piece:
            self._at_start = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What is left: U+FFFD if the last character is incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)


def _known_id(backend: tokenizers.Tokenizer, token: int | str, path: Path) -> int:
    token_id = backend.token_to_id(token) if isinstance(token, str) else token
    if token_id is None:
        raise ValueError(f"{path}: the token {token!r} is not in the vocabulary")
    return token_id


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes stand for themselves, the other ones
    are the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): b for b in printable}
    alphabet.update({chr(0x100 + i): b for i, b in enumerate(others)})
    return alphabet


BYTE_OF = byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:  # a token outside of the alphabet is written literally
        return token.encode("utf-8")


def _sentencepiece_bytes(token: str) -> bytes:
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(METASPACE, " ").encode("utf-8")


def _decoding_rule(backend: tokenizers.Tokenizer) -> tuple[bool, bool]:
    """(byte level?, drop the first space of a text?)"""
    state: dict[str, Any] = {}
    if backend.decoder is not None:
        state = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state.get("type") == "Sequence" else [state]
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return True, False
    for step in steps:
        if step.get("type") == "Metaspace" and step.get("replacement") != METASPACE:
            raise ValueError(f"a tokenizer's spaces are {step.get('replacement')!r}")
        if step.get("type") == "Replace" and (
            step.get("pattern") != {"String": METASPACE} or step.get("content") != " "
        ):
            raise ValueError(f"a tokenizer's decoder replaces {step.get('pattern')!r}")
    if kinds == {"Metaspace"}:
        return False, steps[0].get("prepend_scheme", "always") != "never"
    if "Replace" in kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return False, "Strip" in kinds
    names = sorted(str(kind) for kind in kinds)
    raise ValueError(
        f"a tokenizer decoder of {names} is not supported, only byte-level and SentencePiece ones"
    )
