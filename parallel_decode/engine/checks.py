"""`Checks`: what has to hold of branches and tokens before an operation begins."""

from collections.abc import Mapping, Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Fork, Join
from parallel_decode.engine.work import Work
from parallel_decode.model.tokenizer import Tokenizer


class Settling(ValueError):
    """A branch's pending tokens are being computed for another operation: try again after it."""


class Checks:
    """All raise ValueError where it does not.

    Args:
        running: works by the id of their branch; it changes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        max_seq_len: int,
        running: Mapping[int, Work],
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_seq_len = max_seq_len
        self._running = running

    def encode(self, text: str | Sequence[int], *, is_prompt: bool = False) -> list[int]:
        """Token ids of a text; ids pass through, checked. A prompt begins as the model wants it."""
        if isinstance(text, str):
            return self._tokenizer.encode(text, add_bos=None if is_prompt else False)
        tokens = [int(token) for token in text]
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary {self._vocab_size}")
        return tokens

    def idle(self, branch: Branch) -> None:
        if branch.status in ("pruned", "failed"):
            why = f": {branch.error}" if branch.error else ""
            raise ValueError(f"{branch!r} can't go on{why}")
        work = self._running.get(id(branch))
        if work is not None and not work.done:
            # A fork or join needs no work as a rule, and some after a pre-emption: the program
            # must not notice the difference.
            settling = isinstance(work.operation, Fork | Join)
            kind = Settling if settling else ValueError
            raise kind(f"{branch!r} is running in another operation")
        if not branch.recomputable and not branch.num_stored:
            raise ValueError(f"{branch!r} was released: text alone can't bring back its keys")

    def has_last_token(self, branch: Branch) -> None:
        if branch.num_tokens == branch.join_length:
            raise ValueError(
                f"{branch!r} was joined: it has no last token to go on from, extend it with tokens"
            )

    def end(self, end: int, added: int) -> None:
        """`end`: how far the positions would go."""
        if end > self._max_seq_len:
            what = f"{added} more tokens make" if added else "that makes"
            raise ValueError(
                f"{what} {end} tokens, over the context of {self._max_seq_len}: open the engine"
                " with a larger max_seq_len, or shorten the text"
            )
