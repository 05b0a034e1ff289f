"""From the text of a branch to its answer, or None where there is none."""

import json
import re
import textwrap
from collections.abc import Callable
from typing import Any

from parallel_decode.reasoning.extraction import Batched, Extractor, answers_of, normalised
from parallel_decode.reasoning.symbolic import symbolic

__all__ = [
    "Batched",
    "Extractor",
    "after",
    "answers_of",
    "boxed",
    "choice_letter",
    "code_block",
    "json_field",
    "last_number",
    "named",
    "normalised",
    "pattern",
    "spelling",
    "symbolic",
    "whole",
]

Form = Callable[[str], str | None]

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
    return _number(found[-1])


def _number(digits: str) -> str:
    number = digits.replace(",", "").replace("\u2212", "-")
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


def after(marker: str) -> Form:
    """The rest of the line after the last `marker`."""
    if not marker:
        raise ValueError("marker must not be empty")

    def extract(text: str) -> str | None:
        _, found, rest = text.rpartition(marker)
        line = rest.split("\n", 1)[0].strip()
        return line if found and line else None

    return extract


def pattern(expression: str) -> Form:
    """The last match of a regular expression: its first group, or all of it."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression: {error}") from error

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return (found[-1].group(1 if compiled.groups else 0) or None) if found else None

    return extract


FENCE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n(?P<code>.*?)"
    r"^[ \t]*(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


def code_block(language: str | None = None) -> Form:
    """What the last closed block between fences holds, without common indentation.

    Args:
        language: as the fence names it, such as "python"; None for any.
    """

    def extract(text: str) -> str | None:
        for found in reversed(list(FENCE.finditer(text))):
            if language is None or found["language"].lower() == language.lower():
                return textwrap.dedent(found["code"]).strip("\n").rstrip() or None
        return None

    return extract


def json_field(path: str) -> Form:
    """A field of the last JSON object in the text that has it; null is no answer.

    Args:
        path: names with dots between them: "result.value".
    """
    names = path.split(".")
    if not all(names):
        raise ValueError(f"{path!r} is no path of names with dots between them")
    decoder = json.JSONDecoder()

    def extract(text: str) -> str | None:
        answer, start = None, text.find("{")
        while start >= 0:
            try:
                value, end = decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                value, end = None, start + 1
            for name in names:
                value = value.get(name) if isinstance(value, dict) else None
            answer = answer if value is None else _json_text(value)
            start = text.find("{", end)
        return answer

    return extract


def _json_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def whole(text: str) -> str | None:
    """All of it, without blanks around it."""
    return text.strip() or None


def spelling(answer: str) -> str | None:
    """One spelling for answers that differ in case, blanks, quotes, a full stop, or the zeros and
    commas of a number; for `normalised`."""
    plain = " ".join(answer.casefold().split()).strip(" .\"'`*$")
    return (_number(plain) if NUMBER.fullmatch(plain) else plain) or None


def named(spec: str) -> Extractor:
    """An extractor by name: "number", "boxed", "letter", "code", "text" (all of it), "json:FIELD",
    "after:MARKER", "regex:EXPRESSION", or "symbolic:" before another name."""
    plain: dict[str, Extractor] = {
        "number": last_number,
        "boxed": boxed,
        "letter": choice_letter,
        "code": code_block(),
        "text": whole,
    }
    if spec in plain:
        return plain[spec]
    kind, _, argument = spec.partition(":")
    if kind == "after" and argument:
        return after(argument)
    if kind == "regex" and argument:
        return pattern(argument)
    if kind == "json" and argument:
        return json_field(argument)
    if kind == "symbolic" and argument:
        return symbolic(named(argument))
    raise ValueError(
        f"no extractor {spec!r}: use {', '.join(plain)}, json:FIELD, after:MARKER, regex:EXPRESSION"
        " or symbolic:NAME"
    )
