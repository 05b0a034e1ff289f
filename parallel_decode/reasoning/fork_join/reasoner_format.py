"""The fork-join format that `examples/train_formats.py` teaches the bundled reasoner."""

from parallel_decode.model.tokenizer import Tokenizer
from parallel_decode.reasoning.fork_join.tags import Tags

PARALLEL = "<parallel>"
"""Follows a question that is to be answered in this format; without it the model forks nothing."""
NAMES = {
    "open": "<fork>",
    "go": "<go>",
    "path": "<path>",
    "close": "</path>",
    "join": "<join>",
}


def reasoner_tags(tokenizer: Tokenizer) -> Tags:
    """The tags: a list of names, each one token, and a line end after what is given.

    Raises:
        ValueError: it is not the tokenizer of such a model.
    """
    return Tags.named(tokenizer, after_path="\n", after_join="\n", **NAMES)
