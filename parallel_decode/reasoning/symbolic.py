"""Answers that are equal as expressions count as one: 1/2, 0.5 and \\frac{1}{2}; (x+1)^2 and
x^2+2x+1.

Answers are a model's text, so none is ever evaluated as code. They are parsed into a small grammar
and compared by their values at a few points: first in double precision, which also turns away what
overflows, and then, where they look the same, to many digits.
"""

import ast
import cmath
import keyword
import math
import operator
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any

from parallel_decode.reasoning.extraction import Batched, Extractor, answers_of

LONGEST = 400
"""Characters of an answer that is still read as an expression."""
DIGITS = 50
OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: Mapping[str, Callable[[complex], complex]] = {
    "sqrt": cmath.sqrt,
    "exp": cmath.exp,
    "log": cmath.log,
    "ln": cmath.log,
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "abs": abs,
}
CONSTANTS = {"pi": math.pi, "e": math.e}

LATEX = (
    (re.compile(r"\$|\\left|\\right|\\[,;! ]|\\displaystyle"), ""),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\\cdot|\\times|\u00d7|\u00b7"), "*"),
    (re.compile(r"\\div|\u00f7"), "/"),
    (re.compile(r"\u2212"), "-"),
    (re.compile(r"\\pi|\u03c0"), " pi "),
    (re.compile(r"\\(sqrt|exp|log|ln|sin|cos|tan)"), r" \1"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),  # 1,000
    (re.compile(r"^\s*[A-Za-z]\w*\s*=(?!=)"), ""),  # x = 3
)
ALPHABET = re.compile(r"[\w\s+\-*/().,]*", re.ASCII)
WORD = re.compile(r"[A-Za-z_]+")
IMPLICIT_PRODUCT = re.compile(r"(?<![A-Za-z_])(\d+\.?\d*|\.\d+)\s*(?=[A-Za-z(])|\)\s*(?=[\w(])")


@dataclass(frozen=True)
class Point:
    """A value for every variable there may be, the same whenever it is asked for."""

    number: int
    sign: int

    def of(self, name: str) -> Fraction:
        return self.sign * Fraction(1 + zlib.crc32(f"{name}/{self.number}".encode()) % 8999, 3000)


POINTS = tuple(Point(number, sign) for number, sign in enumerate((1, -1, 1)))
"""Where expressions are compared."""


@dataclass(frozen=True)
class Expression:
    """A parsed answer, and its values at the points.

    Attributes:
        parts: of a tuple; an answer that is none has one part.
        values: of each part at each point, None where it is not defined.
    """

    parts: tuple[ast.expr, ...]
    values: tuple[tuple[complex | None, ...], ...]


def parse(text: str) -> Expression | None:
    """The expression that a text is, in plain or LaTeX notation, or None where it is none: another
    notation, words, or numbers beyond double precision."""
    if len(text) > LONGEST:
        return None
    try:
        plain = _plain(text)
        if not ALPHABET.fullmatch(plain) or any(map(keyword.iskeyword, WORD.findall(plain))):
            return None
        body = ast.parse(plain, mode="eval").body
        parts = tuple(body.elts) if isinstance(body, ast.Tuple) else (body,)
        values = tuple(tuple(_at(part, point) for point in POINTS) for part in parts)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return None
    return Expression(parts, values)


def equal(first: Expression, second: Expression, sympy: Any) -> bool:
    """Whether two expressions have the same value at every point where both are defined."""
    if len(first.parts) != len(second.parts):
        return False
    for a, b, at_a, at_b in zip(
        first.parts, second.parts, first.values, second.values, strict=True
    ):
        points = [
            point
            for point, x, y in zip(POINTS, at_a, at_b, strict=True)
            if x is not None and y is not None
        ]
        close = all(
            cmath.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)
            for x, y in zip(at_a, at_b, strict=True)
            if x is not None and y is not None
        )
        if not points or not close:
            return False
        for point in points:
            x, y = (_digits(part, point, sympy) for part in (a, b))
            if abs(x - y) > sympy.Float(10, DIGITS) ** (10 - DIGITS) * (1 + abs(x)):
                return False
    return True


def merged(answers: Sequence[str | None]) -> list[str | None]:
    """Each answer as its first equal is written; what is no expression stays as it is.

    Raises:
        ValueError: sympy, the extra `math`, is not installed.
    """
    sympy = _sympy()
    known: dict[str, str] = {}
    expressions: list[tuple[str, Expression]] = []
    for answer in answers:
        if answer is None or answer in known:
            continue
        known[answer] = answer
        expression = parse(answer)
        if expression is None:
            continue
        for spelling, other in expressions:
            if equal(expression, other, sympy):
                known[answer] = spelling
                break
        else:
            expressions.append((answer, expression))
    return [None if answer is None else known[answer] for answer in answers]


def symbolic(extract: Extractor) -> Batched:
    """An extractor whose answers are one vote where they are equal as expressions.

    Raises:
        ValueError: sympy, the extra `math`, is not installed.
    """
    _sympy()
    return Batched(lambda texts: merged(answers_of(extract, texts)))


def _sympy() -> Any:
    try:
        return import_module("sympy")  # half a second: only where it is asked for
    except ImportError as error:
        raise ValueError(
            "equality of expressions needs sympy: pip install 'parallel_decode[math]'"
        ) from error


def _plain(text: str) -> str:
    """Python's notation of a text in LaTeX's or in that of a blackboard."""
    for form, replacement in LATEX:
        text = form.sub(replacement, text)
    while (start := text.find("\\frac")) >= 0:
        above, middle = _braced(text, start + len("\\frac"))
        below, end = _braced(text, middle)
        text = f"{text[:start]}(({above})/({below})){text[end:]}"
    text = text.strip().rstrip(".").replace("{", "(").replace("}", ")").replace("^", "**")
    return IMPLICIT_PRODUCT.sub(lambda found: f"{found[0].rstrip()}*", text)


def _braced(text: str, start: int) -> tuple[str, int]:
    """What the braces at `start` hold, and the end of them."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0 and not text[index].isspace():
            if text[index] != "}":
                break
            return text[start : index + 1].strip()[1:-1], index + 1
    raise ValueError(f"no braces at {start} of {text!r}")


def _at(node: ast.expr, point: Point) -> complex | None:
    try:
        value = complex(_value(node, complex, CONSTANTS, FUNCTIONS, point))
    except ZeroDivisionError:
        return None
    if not cmath.isfinite(value):
        raise OverflowError
    return value


def _digits(node: ast.expr, point: Point, sympy: Any) -> Any:
    """The value to DIGITS digits and some more. Floats of a fixed size all the way: exact powers
    would not end."""
    precision = DIGITS + 10
    constants = {"pi": sympy.pi.evalf(precision), "e": sympy.E.evalf(precision)}
    functions = {name: getattr(sympy, "Abs" if name == "abs" else name) for name in FUNCTIONS}

    def number(value: Fraction) -> Any:
        return sympy.Float(value.numerator, precision) / value.denominator

    return sympy.N(_value(node, number, constants, functions, point), precision)


def _value(
    node: ast.expr,
    number: Callable[[Fraction], Any],
    constants: Mapping[str, Any],
    functions: Mapping[str, Callable[[Any], Any]],
    point: Point,
) -> Any:
    """The value of a parsed expression in one arithmetic or another; ValueError for what is not in
    the grammar."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool()):
                raise ValueError("no number")
            case ast.Constant(value=int() | float() as constant):
                return number(Fraction(str(constant)))
            case ast.Name(id=name):
                return constants[name] if name in constants else number(point.of(name))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
                name in functions
            ):
                return functions[name](value(argument))
        raise ValueError(f"{ast.dump(node)} is not in the grammar")

    return value(node)
