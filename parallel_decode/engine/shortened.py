"""`shortened`: the beginning of a text, bounded by tokens."""

from parallel_decode.model.tokenizer import Tokenizer

FIRST_LOOK = 8
"""Characters a token of which a beginning is encoded first."""


def shortened(text: str, max_tokens: int, tokenizer: Tokenizer) -> str:
    """The longest beginning that has at most `max_tokens` tokens, as far as whole characters go."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    size = FIRST_LOOK * max_tokens
    tokens = tokenizer.encode(text[:size], add_bos=False)
    while len(tokens) <= max_tokens and size < len(text):
        size *= 2
        tokens = tokenizer.encode(text[:size], add_bos=False)
    if len(tokens) <= max_tokens:
        return text
    return tokenizer.decode(tokens[:max_tokens]).rstrip("\ufffd")
