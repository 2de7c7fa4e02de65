"""What every shape that travels over REST is made of."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, field_validator


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    """Configuration of a shape whose description shows these."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


def refuse_nul(value: object) -> object:
    """Raise `ValueError` for text with a NUL character, which neither names of files nor every
    database can hold.
    """
    texts = cast(list[object], value) if isinstance(value, list) else [value]
    for text in texts:
        if isinstance(text, str) and "\0" in text:
            raise ValueError("It holds a NUL character; leave that out.")
    return cast(object, value)


class StoredShape(Shape):
    """One whose texts come from outside and are stored."""

    _no_nul = field_validator("*", mode="after")(refuse_nul)
