"""Base classes of all REST shapes."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, field_validator


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    """Model configuration that adds examples to a shape's JSON schema."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


def refuse_nul(value: object) -> object:
    """Validator that raises `ValueError` for text with a NUL character.

    File names cannot hold one, nor can PostgreSQL.
    """
    texts = cast(list[object], value) if isinstance(value, list | tuple) else [value]
    for text in texts:
        if isinstance(text, str) and "\0" in text:
            raise ValueError("The text contains a NUL character; remove it.")
    return cast(object, value)


class StoredShape(Shape):
    """A shape whose texts come from a client and are stored."""

    _no_nul = field_validator("*", mode="after")(refuse_nul)
