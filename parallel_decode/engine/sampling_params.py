"""How a branch picks its tokens and when it stops."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from parallel_decode.engine.grammar import Grammar


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one branch.

    The order is that of Hugging Face: penalties, bias and allowed tokens change the logits;
    temperature scales them; top-k, top-p and min-p filter what is left.

    Args:
        temperature: 0 is greedy (the lowest id among equals).
        top_k: keep the k most likely tokens; 0 is off.
        top_p: keep the smallest set that holds this probability; 1 is off.
        min_p: keep tokens with at least this share of the most likely one's probability; 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the
            prompt or the output (Keskar et al., 2019); 1 is off.
        presence_penalty: subtracted once from each token that was generated.
        frequency_penalty: subtracted from each generated token as often as it was generated.
        logit_bias: token id -> value added to its logit.
        allowed_tokens: if given, no other token can be chosen.
        stop: a string or strings that end the branch; one may straddle several tokens.
        stop_tokens: token ids that end the branch, besides the model's own end of sequence.
        ignore_eos: go on past the model's end of sequence.
        min_tokens: no end of sequence and no stop token before this many tokens.
        max_tokens: tokens that one `Extend` may generate.
        seed: if given, the branch draws from this seed instead of the engine's.
        logprobs: how many of the most likely tokens to record at each step, 0 for none; the chosen
            token's own log-probability is always recorded.
        grammar: what the text must be, token by token; see `Grammar`. It is applied where the
            allowed tokens are.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: frozenset[int] | None = None
    stop: str | Sequence[str] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int = 256
    seed: int | None = None
    logprobs: int = 0
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        checks = {
            "temperature": (0 <= self.temperature < float("inf"), "finite and at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "positive"),
            "presence_penalty": (abs(self.presence_penalty) < float("inf"), "finite"),
            "frequency_penalty": (abs(self.frequency_penalty) < float("inf"), "finite"),
            "logit_bias": (all(map(math.isfinite, self.logit_bias.values())), "finite values"),
            "stop": (all(isinstance(s, str) and s for s in stop), "non-empty strings"),
            "allowed_tokens": (self.allowed_tokens is None or self.allowed_tokens, "not empty"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "in [0, max_tokens]"),
            "logprobs": (self.logprobs >= 0, "at least 0"),
            "grammar": (self.grammar is None or isinstance(self.grammar, Grammar), "a Grammar"),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}")
        if self.grammar is not None and self.ignore_eos:
            raise ValueError("a grammar ends with the end of sequence: ignore_eos must be off")

    @property
    def edits_logits(self) -> bool:
        """Whether the logits must be changed before temperature and filters."""
        return bool(
            self.logit_bias
            or self.allowed_tokens is not None
            or self.min_tokens
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """ValueError where a token id named here is not one of the model's."""
        named = {*self.logit_bias, *(self.allowed_tokens or ()), *self.stop_tokens}
        for token in sorted(named):
            if not 0 <= token < vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {vocab_size}")
