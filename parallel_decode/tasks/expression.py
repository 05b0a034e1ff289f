"""Arithmetic expressions over + - *: exact value, numbers used, one normal form."""

import ast
import re

ALLOWED = re.compile(r"[0-9+*() -]{1,80}")


def parse(text: str) -> ast.expr | None:
    """The syntax tree, or None unless the text is whole numbers joined by + - * and brackets."""
    if not ALLOWED.fullmatch(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
                return None
        elif not isinstance(node, ast.Constant | ast.operator | ast.expr_context):
            return None
    return tree


def value(tree: ast.expr) -> int:
    if isinstance(tree, ast.Constant):
        return int(tree.value)  # type: ignore[arg-type]  # `parse` lets whole numbers through alone
    assert isinstance(tree, ast.BinOp)
    left, right = value(tree.left), value(tree.right)
    if isinstance(tree.op, ast.Mult):
        return left * right
    return left + right if isinstance(tree.op, ast.Add) else left - right


def numbers(tree: ast.expr) -> list[int]:
    return [value(node) for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def normal_form(tree: ast.expr) -> str:
    """The same string for expressions that differ only by commutation and association."""
    if isinstance(tree, ast.Constant):
        return str(tree.value)
    assert isinstance(tree, ast.BinOp)
    if isinstance(tree.op, ast.Mult):
        return "*".join(sorted(_factors(tree)))
    terms = _terms(tree, "+")
    plus = sorted(text for sign, text in terms if sign == "+")
    minus = sorted(text for sign, text in terms if sign == "-")
    return "+".join(plus) + "".join(f"-{text}" for text in minus)


def _factors(tree: ast.expr) -> list[str]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        return _factors(tree.left) + _factors(tree.right)
    text = normal_form(tree)
    return [f"({text})" if isinstance(tree, ast.BinOp) else text]


def _terms(tree: ast.expr, sign: str) -> list[tuple[str, str]]:
    if isinstance(tree, ast.BinOp) and not isinstance(tree.op, ast.Mult):
        swapped = {"+": "-", "-": "+"}[sign]
        right = sign if isinstance(tree.op, ast.Add) else swapped
        return _terms(tree.left, sign) + _terms(tree.right, right)
    return [(sign, normal_form(tree))]
