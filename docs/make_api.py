"""Writes docs/api.md from the docstrings of the package.

`python docs/make_api.py` rewrites it, `--check` exits with 1 where it is not up to date.
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).with_name("api.md")
MODULES = (
    "parallel_decode.engine",
    "parallel_decode.speculation",
    "parallel_decode.reasoning",
    "parallel_decode.reasoning.consistency.stopping",
    "parallel_decode.reasoning.extract",
    "parallel_decode.reasoning.metrics",
    "parallel_decode.viewer",
    "parallel_decode.model",
    "parallel_decode.tasks",
    "parallel_decode.questions",
)
# Made by the engine alone; their methods are the engine's, their properties are for everybody.
HANDLES = {"Branch", "Program"}
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields", "Modes")


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or what the module itself defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def page() -> str:
    top = importlib.import_module("parallel_decode")
    exported = ", ".join(f"`{name}`" for name in public_names(top))
    parts = [
        "# Python API",
        "Made from the docstrings by `python docs/make_api.py`; do not edit.",
        f"`parallel_decode` itself exports {exported}.",
    ]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += [f"## {name}", inspect.cleandoc(module.__doc__ or "")]
        for public in sorted(public_names(module), key=str.lower):
            parts += entry(public, getattr(module, public))
    return "\n\n".join(filter(None, parts)) + "\n"


def entry(name: str, value: Any) -> Iterator[str]:
    yield f"### {name}"
    if typing.get_origin(value) is not None:
        written = annotation(value).replace("'", '"')
        yield code(f"{name} = {written}")
    elif inspect.isclass(value):
        yield code(f"class {name}{constructor(value)}")
        yield markdown(documentation(value))
        shown = [text for text in (member(*found) for found in members(value)) if text]
        yield "\n".join(["*Methods and properties*", "", *shown]) if shown else ""
    elif callable(value):
        yield code(f"def {name}{signature(value)}")
        yield markdown(documentation(value))
    else:
        yield code(f"{name}: {type(value).__name__}")


def constructor(cls: type) -> str:
    if issubclass(cls, Exception):
        return f"({cls.__base__.__name__})"
    if cls.__name__ in HANDLES or getattr(cls, "_is_protocol", False):
        return ""
    return signature(cls)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, those of base classes inside the package too."""
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.startswith("parallel_decode"):
            found |= vars(owner)
    for name, value in sorted(found.items()):
        if not name.startswith("_") and (
            cls.__name__ not in HANDLES or isinstance(value, property)
        ):
            yield name, value


def member(name: str, value: Any) -> str:
    """One item of the list under a class; nothing for plain data."""
    if isinstance(value, property):
        head = f"`{name}: {annotation(inspect.signature(value.fget).return_annotation)}`"
    elif isinstance(value, classmethod | staticmethod):
        head = f"`{name}{signature(value.__func__, bound=isinstance(value, classmethod))}`"
    elif inspect.isfunction(value):
        head = f"`{name}{signature(value, bound=True)}`"
    else:
        return ""
    text = markdown(documentation(value))
    if not text:
        return f"- {head}"
    first, _, more = text.partition("\n")
    more = "\n".join(f"  {line}".rstrip() for line in more.split("\n")) if more else ""
    return f"- {head}  \n  {first}\n{more}".rstrip()


def documentation(value: Any) -> str:
    """The docstring that was written for it: neither inherited nor made by `dataclass`."""
    text = value.__doc__ or ""
    if inspect.isclass(value) and text.startswith(f"{value.__name__}("):
        return ""
    return inspect.cleandoc(text)


class Plain:
    """Stands for a default or an annotation and prints as `text`."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature(value: Any, *, bound: bool = False) -> str:
    """With annotations as they are written, but names without their modules."""
    found = inspect.signature(value)
    empty = inspect.Signature.empty
    parameters = [
        parameter.replace(
            default=empty if parameter.default is empty else default(parameter.default),
            annotation=empty if parameter.annotation is empty else annotated(parameter.annotation),
        )
        for parameter in list(found.parameters.values())[1 if bound else 0 :]
    ]
    result = found.return_annotation
    hidden = inspect.isclass(value) or result is empty
    return str(
        inspect.Signature(parameters, return_annotation=empty if hidden else annotated(result))
    )


def default(value: Any) -> Plain:
    if inspect.isfunction(value):
        return Plain(value.__name__)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return Plain(f"{type(value).__name__}({', '.join(changed_fields(value))})")
    return Plain("..." if repr(value) == "<factory>" else repr(value))


def changed_fields(value: Any) -> Iterator[str]:
    """Only what differs from the defaults of a frozen dataclass."""
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        made = field.default_factory
        if held != (field.default if made is dataclasses.MISSING else made()):
            yield f"{field.name}={held!r}"


def annotated(value: Any) -> Plain:
    return Plain(annotation(value))


def annotation(value: Any) -> str:
    """`collections.abc.Sequence[int]` -> `Sequence[int]`."""
    if isinstance(value, typing.ForwardRef):
        value = value.__forward_arg__
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text.strip("'\"").replace("typing.", ""))
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def code(text: str) -> str:
    """Python; one parameter a line where a line would be too long."""
    if len(text) > 100:
        head, _, rest = text.partition("(")
        inside, close, tail = rest.rpartition(")")
        lines = [f"    {part}," for part in split_parameters(inside)]
        text = "\n".join([f"{head}(", *lines, f"{close}{tail}"])
    return f"```python\n{text}\n```"


def split_parameters(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def markdown(text: str) -> str:
    """Sections of `name: meaning` become lists."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        head = re.fullmatch(r"(\w[\w ,]*):", line)
        if head and head[1].split(",")[0] in SECTIONS:
            inside = True
            lines += [f"*{head[1]}*", ""] if lines and lines[-1] == "" else ["", f"*{head[1]}*", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            item = re.match(r"    ([\w., ]+?|\"\w+\"): (.*)", line)
            lines.append(f"- `{item[1]}`: {item[2]}" if item else f"- {line.strip()}")
        elif inside and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    old = args.page.read_text("utf-8") if args.page.is_file() else ""
    new = page()
    if args.check and new != old:
        sys.exit(f"{args.page} is not up to date: run python docs/make_api.py")
    if new != old:
        args.page.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
