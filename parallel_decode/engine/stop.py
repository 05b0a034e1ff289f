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
        self._letters = [s for s in stop if len(s) == 1]
        self._endings: dict[int, bool] = {}
        self._whole: dict[int, bool] = {}

    def match(self, tokens: Sequence[int]) -> str | None:
        """The stop string that the newest of `tokens` completes, or None."""
        if len(self._stop) == 1 and self._holds_one(tokens[-1]):
            return self._stop[0]
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
        token = tokens[-1]
        if not self.may_end(token):
            return False
        return self._holds_one(token) or self.match(tokens[-self.window :]) is not None

    def _holds_one(self, token: int) -> bool:
        """Whether the token alone holds a stop string of one character, such as a line end: the
        tokens before it do not matter then."""
        known = self._whole.get(token)
        if known is None:
            text = self._decode([token])
            known = "\ufffd" not in text and any(s in text for s in self._letters)
            self._whole[token] = known
        return known

    def may_end(self, token: int) -> bool:
        """Whether the token's text holds the last character of a stop string."""
        known = self._endings.get(token)
        if known is None:
            text = self._decode([token])
            # An incomplete UTF-8 sequence decodes to U+FFFD: it may end anything.
            known = "\ufffd" in text or any(s[-1] in text for s in self._stop)
            self._endings[token] = known
        return known
