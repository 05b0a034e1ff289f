"""From the text of a branch to its answer, or None where there is none."""

import re
from collections.abc import Callable

Extractor = Callable[[str], str | None]

# A minus after a digit or a letter ("7-3") is an operator; commas count in groups of three only.
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])[-\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+(?!\.\d))?"
)
# Which letter is meant, the surest form first: "answer is B" or "answer: (B)", a line that ends
# with it, "(B)", and one that stands alone. "A" before a word is an article.
CHOICES = (
    re.compile(r"(?i:\banswer(?:\s+is)?\b\s*:?)[\s(*\"']*([A-E])(?![A-Za-z'])"),
    re.compile(r"(?<![A-Za-z'])([A-E])[).\s*\"']*$", re.MULTILINE),
    re.compile(r"\(([A-E])\)"),
    re.compile(r"(?<![A-Za-z'])([B-E]|A(?!\s+[a-z]))(?![A-Za-z'])"),
)


def last_number(text: str) -> str | None:
    """The last number or fraction: no thousands separators, no zeros at the end of decimals."""
    found = NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "").replace("\u2212", "-")
    return number.rstrip("0").rstrip(".") if "." in number else number


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces balanced; None where it is open or empty."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : index].strip() or None
    return None


def choice_letter(text: str) -> str | None:
    """The capital A to E that the text settles on; see `CHOICES`."""
    for form in CHOICES:
        found = form.findall(text)
        if found:
            return str(found[-1])
    return None


def after(marker: str) -> Extractor:
    """The rest of the line after the last `marker`."""
    if not marker:
        raise ValueError("marker must not be empty")

    def extract(text: str) -> str | None:
        _, found, rest = text.rpartition(marker)
        line = rest.split("\n", 1)[0].strip()
        return line if found and line else None

    return extract


def pattern(expression: str) -> Extractor:
    """The last match of a regular expression: its first group, or all of it."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression: {error}") from error

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return (found[-1].group(1 if compiled.groups else 0) or None) if found else None

    return extract


def named(spec: str) -> Extractor:
    """An extractor by name: "number", "boxed", "letter", "after:MARKER" or "regex:EXPRESSION"."""
    plain = {"number": last_number, "boxed": boxed, "letter": choice_letter}
    if spec in plain:
        return plain[spec]
    kind, _, argument = spec.partition(":")
    if kind == "after" and argument:
        return after(argument)
    if kind == "regex" and argument:
        return pattern(argument)
    raise ValueError(
        f"no extractor {spec!r}: use number, boxed, letter, after:MARKER or regex:EXPRESSION"
    )
