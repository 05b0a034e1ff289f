"""`CallReader`: finds calls and traps in a text as it grows, and where nothing may come between."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

TAGS: dict[str, Literal["call", "trap"]] = {"<call>": "call", "<trap>": "trap"}


class Event(NamedTuple):
    """Something that a text asks for.

    Attributes:
        body: what stands between the tags; of "malformed" the whole line.
    """

    kind: Literal["call", "trap", "malformed"]
    body: str


class CallReader:
    """Reads `<call>name {"argument": value}</call>`, and `<trap>1, 2</trap>`, which waits for
    calls 1 and 2, or for all where it is empty. Both stand on one line: a line that ends within
    one is malformed.

    Args:
        sections: (begin, end) of critical sections: tags in them mean nothing.

    Attributes:
        inside: whether the text so far ends within a call, a trap or a critical section.
    """

    def __init__(self, sections: Sequence[tuple[str, str]]) -> None:
        if any(not begin or not end for begin, end in sections):
            raise ValueError(f"sections must have a begin and an end, got {list(sections)}")
        self.inside = False
        self._sections = list(sections)
        self._unread = ""

    @property
    def stops(self) -> list[str]:
        """Strings at which the text should be looked at."""
        ends = [end for _, end in self._sections]
        return ["\n", *(f"</{name}>" for name in TAGS.values()), *ends]

    def read(self, text: str) -> list[Event]:
        """What the text asks for, now that this was added."""
        self._unread += text
        events: list[Event] = []
        self.inside = False
        while not self.inside:
            opened = self._next_opening()
            if opened is None:
                break
            at, begin, end = opened
            rest = self._unread[at + len(begin) :]
            body, closed, behind = rest.partition(end)
            if begin in TAGS and "\n" in body:
                line, _, behind = rest.partition("\n")
                events.append(Event("malformed", begin + line))
            elif closed:
                if begin in TAGS:
                    events.append(Event(TAGS[begin], body))
            else:
                self.inside = True
                self._unread = self._unread[at:]
                break
            self._unread = behind
        return events

    def _next_opening(self) -> tuple[int, str, str] | None:
        """(where, begin, end) of what opens first."""
        pairs = [*((tag, f"</{name}>") for tag, name in TAGS.items()), *self._sections]
        found = [(self._unread.find(begin), begin, end) for begin, end in pairs]
        return min((entry for entry in found if entry[0] >= 0), default=None)
