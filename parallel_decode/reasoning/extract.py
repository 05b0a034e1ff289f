"""From the text of a branch to its answer, or None where there is none."""

import re
from collections.abc import Callable

Extractor = Callable[[str], str | None]

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def last_number(text: str) -> str | None:
    """The last number, without thousands separators and with no zeros after the point."""
    found = NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : index].strip()
    return None


def choice_letter(text: str) -> str | None:
    """The last capital A to E that stands alone, with or without brackets."""
    found = re.findall(r"(?<![A-Za-z'])\(?([A-E])\)?(?![A-Za-z'])", text)
    return found[-1] if found else None


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
    compiled = re.compile(expression)

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1].group(1 if compiled.groups else 0) if found else None

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
