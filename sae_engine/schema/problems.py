"""Error bodies of the REST API."""

from __future__ import annotations

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
