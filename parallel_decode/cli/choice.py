"""A method from its name and settings, as commands take them."""

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from parallel_decode.reasoning import METHODS, Author, Method


def chosen_method(name: str, settings: Sequence[str], **given: Any) -> Method:
    """The method of this name.

    Args:
        name: as `parallel-decode methods` prints it, or its class.
        settings: "key=value" each, of numbers, texts, True, False or None.
        given: what else the command knows, for those of the method's fields that have these names,
            and of its parts, such as the search of each tree of a forest.

    Raises:
        ValueError: there is no such method or field, the value does not fit, or the method needs
            what can't be written in a command.
    """
    known = {key: method for method in METHODS for key in (method.card.name, method.__name__)}
    if name not in known:
        names = ", ".join(method.card.name for method in METHODS)
        raise ValueError(f"no method {name!r}: there are {names}")
    method = known[name]
    fields = {item.name: item for item in dataclasses.fields(method)}
    values = _given(method, given)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting is key=value, got {setting!r}")
        if key not in fields:
            raise ValueError(f"{name} has no field {key!r}: it has {', '.join(fields)}")
        values[key] = _value(key, text, fields[key])
    missing = [key for key, item in fields.items() if key not in values and _is_required(item)]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}, which only a program can give")
    return method(**values)


def _given(made: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is given, the values of a class's fields, and parts that are made with them."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(made):
        part: Any = item.default_factory
        if item.name in given:
            values[item.name] = given[item.name]
        elif isinstance(part, type) and issubclass(part, Method | Author):
            values[item.name] = part(**_given(part, given))
    return values


def _value(key: str, text: str, item: "dataclasses.Field[Any]") -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    default = item.default
    if item.default_factory is not dataclasses.MISSING or callable(default):
        raise ValueError(f"{key} can't be set from a command: it is no number and no text")
    if default is None or default is dataclasses.MISSING or value is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        what = type(default).__name__
        raise ValueError(f"{key} must be of the kind of {default!r} ({what}), got {text!r}")
    return value


def _is_required(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
