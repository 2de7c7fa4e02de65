"""Parameters that several endpoints share, with their bounds and checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import Header, Path, Query

from backend.errors import NotFoundError, UnprocessableError

MAX_INTEGER = 2**31 - 1
"""Largest value of an integer column."""

SnapshotStep = Annotated[
    int | None, Query(ge=0, le=MAX_INTEGER, description="A step; unset means the newest.")
]
FeatureNumber = Annotated[int, Path(ge=0, le=MAX_INTEGER)]
PageLimit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=100)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


def check_path_feature(index: int, d_sae: int) -> None:
    """Raise `NotFoundError` unless the feature named in the path exists."""
    if index >= d_sae:
        raise NotFoundError(_no_such_feature(index, d_sae), kind="feature-not-found")


def check_body_features(indices: Iterable[int], d_sae: int) -> None:
    """Raise `UnprocessableError` for a feature in the body's `features` that does not exist."""
    for index in indices:
        if not 0 <= index < d_sae:
            detail = _no_such_feature(index, d_sae)
            raise UnprocessableError(detail, kind="invalid", field="features")


def _no_such_feature(index: int, d_sae: int) -> str:
    return f"There is no feature {index}; this SAE has features 0 to {d_sae - 1}."
