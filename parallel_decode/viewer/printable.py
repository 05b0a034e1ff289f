"""Text that a model wrote, safe to print."""

import re

# Control characters move the cursor or set the title of a terminal; bidirectional marks turn the
# order of what is read around.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with a mark for each character that a terminal might obey; \\n and \\t stay."""
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same without line breaks."""
    return printable(text).strip("\n").replace("\n", " ⏎ ").replace("\t", " ") or "(nothing)"
