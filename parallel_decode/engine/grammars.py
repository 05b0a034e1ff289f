"""`Grammars`: grammars over one vocabulary, and the tokens that they allow next."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel_decode.engine.grammar import Grammar
from parallel_decode.engine.grammar_text import GrammarText, Matcher
from parallel_decode.kernels import Ops
from parallel_decode.model.tokenizer import Tokenizer

WORD_BITS = 32
"""Masks are bits in int32 words, the lowest bit first."""
NUM_KEPT = 64
"""Compiled grammars that are kept for the next branch that needs one."""


class Grammars:
    """Compiles grammars with llguidance, which is opened at the first use, and makes masks.

    Args:
        tokenizer: its tokens' bytes are what the grammars read.
        vocab_size: of the logits.
        ops: takes out what is not allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ops: Ops) -> None:
        self._ops = ops
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._library: Any = None
        self._vocabulary: Any = None
        self._executor: Any = None
        self._compiled: dict[Grammar, Matcher] = {}

    def check(self, grammar: Grammar) -> None:
        """Compiles a grammar.

        Raises:
            ValueError: it can't be read, no text belongs to it, the library is missing, or the
                vocabulary has no end of sequence.
        """
        if grammar in self._compiled:
            return
        self._open()
        by_kind = {
            "json_schema": self._library.LLMatcher.grammar_from_json_schema,
            "regex": self._library.LLMatcher.grammar_from_regex,
            "lark": self._library.LLMatcher.grammar_from_lark,
        }
        source = by_kind[grammar.kind](grammar.source)
        matcher = self._library.LLMatcher(self._vocabulary, source, log_level=0)
        if matcher.is_error():
            raise ValueError(f"the {grammar.kind} grammar can't be used: {matcher.get_error()}")
        if len(self._compiled) >= NUM_KEPT:
            del self._compiled[next(iter(self._compiled))]
        self._compiled[grammar] = matcher

    def begin(self, grammar: Grammar, start: int) -> GrammarText:
        """A text that begins at token `start` of a branch."""
        self.check(grammar)
        return GrammarText(grammar, start, self._compiled[grammar])

    def masked(self, logits: Tensor, matchers: Mapping[int, Matcher]) -> Tensor:
        """Logits without what the matchers do not allow next; all masks in one call.

        Args:
            logits: [num_rows, vocab_size] fp32; it stays as it is.
            matchers: row -> the state behind it. Of one in an error everything is taken out.
        """
        words = np.full((len(logits), -(-self._vocab_size // WORD_BITS)), -1, np.int32)
        words[[*matchers]] = 0
        sound = [(matcher, row) for row, matcher in matchers.items() if not matcher.is_error()]
        if sound:
            self._executor.unsafe_compute_mask_ptr(
                sound, words.ctypes.data, words.shape[1] * words.itemsize, len(words)
            )
        for matcher, row in sound:
            if matcher.is_error():  # it took too long
                words[row] = 0
        return self._ops.mask_logits(logits, words)

    def _open(self) -> None:
        if self._library is not None:
            return
        if not self._tokenizer.eos_ids:
            raise ValueError("a grammar needs a model with an end of sequence")
        try:
            library = import_module("llguidance")
        except ImportError as error:
            raise ValueError(
                "a grammar needs llguidance: pip install 'parallel_decode[grammar]'"
            ) from error
        self._vocabulary = library.LLTokenizer(
            library.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size)),
            n_vocab=self._vocab_size,
            eos_token=list(self._tokenizer.eos_ids),
        )
        self._executor = library.LLExecutor(torch.get_num_threads())
        self._library = library


class _Vocabulary:
    """A tokenizer as llguidance wants it; ids of the model that have no token are special."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        size = tokenizer.vocab_size
        tokens = [tokenizer.token_bytes(token) for token in range(min(size, vocab_size))]
        self.tokens = [*tokens, *[b""] * (vocab_size - len(tokens))]
        self.eos_token_id = tokenizer.eos_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(t for t in tokenizer.special_ids if t < vocab_size)
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"only a text can be encoded, got {text!r}")
        return self._encode(text, add_bos=False)
