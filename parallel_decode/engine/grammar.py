"""`Grammar`: which texts a branch may write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

KINDS = ("json_schema", "regex", "lark")


@dataclass(frozen=True)
class Grammar:
    """A language that a branch's text must belong to, for `SamplingParams(grammar=...)`.

    The text begins where a branch first samples under the grammar. It goes on through later
    extensions under an equal grammar, in forks and after rollbacks; tokens that are given in
    between belong to it and must fit. It is over with the end of sequence, which can come only
    where the text is complete, with sampling under another grammar or none, and with a join: a
    joined branch begins a new one.

    A branch that can't go on fails: `status` is "failed", `finish_reason` is "error" and `error`
    says why. That is so where what was given does not fit, where a complete text may not end
    because of `min_tokens`, or where parsing takes too long. A text that is cut off by
    `max_tokens`, a stop string or a budget may be incomplete.

    Needs the extra `grammar`.

    Args:
        kind: "json_schema", "regex" or "lark".
        source: the schema as JSON, the expression, or the grammar.

    Raises:
        ValueError: the kind is unknown. What is wrong in the source is found by the operation that
            samples.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not isinstance(self.source, str):
            raise ValueError(f"source must be a text, got {self.source!r}")

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any] | bool) -> Grammar:
        """Texts that are JSON of this schema."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema))

    @classmethod
    def regex(cls, expression: str) -> Grammar:
        """Texts that match as a whole; the syntax is that of Rust, without look-around."""
        return cls("regex", expression)

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """Texts of a context-free grammar in Lark's notation, from its rule `start`."""
        return cls("lark", source)
