"""Stop strings, also where one straddles several tokens."""

from collections.abc import Callable, Sequence


class StopMatcher:
    """Finds the first stop string in a growing text.

    Only the last `window` tokens are decoded again; ask `may_end` first, which is quick.
    """

    def __init__(self, stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._stop = tuple(stop)
        self._decode = decode
        # Each token holds at least one byte of text, but special tokens hold none: look wider.
        self.window = 2 * max((len(s.encode()) for s in stop), default=0) + 2
        self._endings: dict[int, bool] = {}

    def match(self, tokens: Sequence[int]) -> str | None:
        """The stop string that the newest of `tokens` completes, or None."""
        text = self._decode(tokens[-self.window :])
        # A character that was incomplete before the newest token may be part of the string.
        before = len(self._decode(tokens[-self.window : -1]).rstrip("\ufffd"))
        found = [
            (text.find(s, max(0, before - len(s) + 1)), s)
            for s in self._stop
            if text.find(s, max(0, before - len(s) + 1)) >= 0
        ]
        return min(found)[1] if found else None

    def completes(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of `tokens` completes a stop string."""
        return self.may_end(tokens[-1]) and self.match(tokens[-self.window :]) is not None

    def may_end(self, token: int) -> bool:
        """Whether the token's text holds the last character of a stop string."""
        known = self._endings.get(token)
        if known is None:
            text = self._decode([token])
            # An incomplete UTF-8 sequence decodes to U+FFFD: it may end anything.
            known = "\ufffd" in text or any(s[-1] in text for s in self._stop)
            self._endings[token] = known
        return known
