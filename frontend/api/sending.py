"""How arguments of calls are written into requests."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from pydantic import BaseModel


def sent(body: BaseModel) -> dict[str, Any]:
    """A request's body: only the fields that were given."""
    return body.model_dump(mode="json", exclude_unset=True)


def segment(text: str) -> str:
    """A part of a path, whatever it holds."""
    return quote(text, safe="")


def keyed(idempotency_key: str | None) -> dict[str, str]:
    """Headers under which a request has its effect once, however often it is sent."""
    return {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
