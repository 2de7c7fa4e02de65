"""Error bodies of the REST API, and pydantic's errors in words."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from sae_engine.schema.shape import Shape


class FieldProblem(Shape):
    """A problem with one field of the request."""

    field: str
    """Dotted name, such as `sae.k`."""
    message: str


class Problem(Shape):
    """An error body, `application/problem+json` (RFC 9457)."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = Field(default_factory=lambda: list[FieldProblem]())


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
}
_PLAIN = {
    "Input should be": "It must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
_LONGEST_MESSAGE = 500


def message_of(error: Any) -> str:
    """One of the errors of a pydantic `ValidationError` as a sentence that names the value."""
    kind, said, value = error["type"], error["msg"], error["input"]
    if kind == "value_error":
        return said.removeprefix("Value error, ")
    if kind == "missing" or (kind == "string_too_short" and not value):
        return "It is required."
    if kind == "string_too_long":
        limit = error["ctx"]["max_length"]
        return f"It has {len(value):,} characters; the limit is {limit:,}."
    name, _, fault = kind.partition("_")
    if name in _KINDS and fault in ("type", "parsing", "from_float", "unicode"):
        return f"{value!r} is not {_KINDS[name]}."[:_LONGEST_MESSAGE]
    for words, plain in _PLAIN.items():
        said = said.replace(words, plain)
    return f"{said} (got {value!r})."[:_LONGEST_MESSAGE]
