"""`script`: sampling params under which a model says what a script says, token by token.

The text is forced by a grammar: every token goes through the model and is drawn by itself, as in
any other text, and takes the time that it takes; only what is drawn is known. So the time of a
method can be measured with a model that could not write the plan.
"""

from __future__ import annotations

from parallel_decode import Engine, Grammar, SamplingParams

BAR = "|"
"""What is told between the parts begins and ends with one; the script itself has none."""
TOLD = r"(?:\|[^|]*\|)*"
SPECIAL = frozenset(r".^$*+?()[]{}|\\")
NEVER = -1e4


def escaped(text: str) -> str:
    """The regular expression of this text and no other."""
    return "".join("\\" + character if character in SPECIAL else character for character in text)


def script(*parts: str, engine: Engine, max_tokens: int = 1000) -> SamplingParams:
    """Greedy params under which a branch says the parts one behind the other. Behind each it may be
    told something between bars, and goes on as if nothing had been."""
    tokenizer = engine.tokenizer
    bars = [
        token
        for token in range(tokenizer.vocab_size)
        if BAR.encode() in tokenizer.token_bytes(token) and token not in tokenizer.special_ids
    ]
    return SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        logit_bias=dict.fromkeys(bars, NEVER),
        grammar=Grammar.regex("".join(escaped(part) + TOLD for part in parts)),
    )
