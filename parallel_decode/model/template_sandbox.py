"""`TemplateSandbox`: a jinja2 sandbox for programs that came inside a downloaded model.

jinja2's own sandbox keeps a template from reaching Python's internals, but not from running for
ever or filling the memory. Here every loop pass, call, filter, operator and literal spends steps of
a budget, long strings more than short ones, and the few operations whose result can be far larger
than their arguments are checked first. Methods and filters that templates do not need are absent.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from json import dumps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

CHARS_PER_STEP = 64
MAX_INTEGER_BITS = 256
PRINTABLE = (str, int, float, list, tuple, dict, jinja2.Undefined)

METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join",
        "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
        "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
        "swapcase", "title", "upper",
    )),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(),
    float: frozenset(("is_integer",)),
}  # fmt: skip
FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "trim", "truncate", "unique", "upper",
)  # fmt: skip


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Call `refill` before each rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, max_chars: int, max_steps: int) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=self._finalize,
            # Folding constants would run the template while it is compiled.
            optimized=False,
        )
        self.max_chars = max_chars
        self.max_steps = max_steps
        self.refill()
        own: dict[str, Callable[..., Any]] = {
            "tojson": self._to_json,
            "join": self._join,
            "replace": self._replace,
            "indent": self._indent,
        }
        self.filters = {name: self._spending(self.filters[name]) for name in FILTERS} | own
        self.filters |= {"each": self._each, "concat": self._join, "measured": self._finalize}
        self.globals = {
            "range": self.globals["range"],
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _PlainNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def refill(self) -> None:
        self.steps_left = self.max_steps

    def spend(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise SecurityError(f"chat template takes more than {self.max_steps} steps")

    def check_length(self, num_chars: int) -> None:
        if num_chars > self.max_chars:
            raise SecurityError(f"chat template makes a text over {self.max_chars} characters")
        self.spend(1 + num_chars // CHARS_PER_STEP)

    def measure(self, value: Any) -> None:
        """Spends what it takes to walk through `value`; a value that is held twice counts twice,
        as it would in a comparison or in its text."""
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                self.check_length(len(item))
                continue
            self.spend(1)
            if isinstance(item, (list, tuple)):
                stack.extend(item)
            elif isinstance(item, dict):
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, Namespace):
                raise SecurityError("chat template uses a namespace as a value")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise SecurityError("chat template has a recursive loop")
            loop.iter = _filtered(loop.iter, "each")
        _replace_nodes(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        # jinja2 would let `format` through, whose widths make texts of any length.
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.spend(1)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            __self.check_length(len(owner))
            if name == "replace":
                return __self._replace(owner, *args, **kwargs)
            if name == "join":
                return __self._join(args[0], owner)
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, Namespace):
            __self.measure(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend(1)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("chat template uses % formatting")
        if operator == "**" and not (abs(left) <= 1 << 32 and abs(right) <= 8):
            raise SecurityError("chat template computes a large power")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    self.check_length(len(value) * max(times, 0))
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.check_length(len(left) + len(right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > MAX_INTEGER_BITS:
            raise SecurityError("chat template computes a large integer")
        self.measure(result)
        return result

    def _spending(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # The marks of `pass_environment` and its like tell jinja2 which first argument to add.
        marked = hasattr(function, "jinja_pass_arg")

        def spending(*args: Any, **kwargs: Any) -> Any:
            self.measure(args[1:2] if marked else args[:1])
            result = function(*args, **kwargs)
            self.measure(result)
            return result

        if marked:
            spending.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return spending

    def _finalize(self, value: Any) -> Any:
        if value is not None and not isinstance(value, PRINTABLE):
            raise SecurityError(f"chat template prints a {type(value).__name__}")
        self.measure(value)
        return value

    def _each(self, value: Iterable[Any]) -> list[Any]:
        items = list(islice(value, self.steps_left + 1))
        self.spend(len(items))
        return items

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        items = self._each(value)
        if attribute is not None:
            items = [self.getitem(item, attribute) for item in items]
        between, *texts = (str(self._finalize(item)) for item in (d, *items))
        self.check_length(sum(map(len, texts)) + len(between) * len(texts))
        return between.join(texts)

    def _replace(self, value: str, old: str, new: str, count: int | None = None) -> str:
        value, old, new = (str(self._finalize(v)) for v in (value, old, new))
        times = value.count(old) if count is None or count < 0 else min(count, value.count(old))
        self.check_length(len(value) + times * len(new))
        return value.replace(old, new, times)

    def _indent(
        self, value: str, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        prefix = width if isinstance(width, str) else " " * min(max(width, 0), 64)
        lines = str(self._finalize(value)).splitlines()
        self.check_length(len(value) + len(prefix) * len(lines))
        return "\n".join(
            prefix + line if (i or first) and (line or blank) else line
            for i, line in enumerate(lines)
        )

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter would escape HTML.
        self.measure(value)
        if (
            isinstance(indent, str)
            or (indent or 0) > 16
            or any(len(s) > 16 for s in separators or ())
        ):
            raise SecurityError("chat template asks for a large indentation")
        text = dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        self.check_length(len(text))
        return text


class _PlainNamespace(Namespace):
    """jinja2's `namespace` without underscored names, which could shadow Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _replace_nodes(node: nodes.Node) -> None:
    """`a ~ b` becomes `[a, b]|concat`; list, tuple and dict literals become `literal|measured`."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _replaced(value))
        elif isinstance(value, list):
            setattr(node, name, [_replaced(v) if isinstance(v, nodes.Node) else v for v in value])


def _replaced(node: nodes.Node) -> nodes.Node:
    _replace_nodes(node)
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "concat")
    if isinstance(node, (nodes.List, nodes.Dict)) or (
        isinstance(node, nodes.Tuple) and node.ctx == "load"
    ):
        return _filtered(node, "measured")
    return node


def _check_name(name: str) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"chat template sets {name!r} on a namespace")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:100])
