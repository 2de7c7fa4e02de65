"""Parameters and dependencies that several endpoints share, with their bounds and checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from fastapi import Depends, Header, Path, Query

from backend import store
from backend.errors import NotFoundError, UnprocessableError
from backend.http.indexes import open_index
from backend.http.services import ServicesDep
from sae_engine.features.index.reader import FeatureIndex

MAX_INTEGER = 2**31 - 1
"""Largest value of an integer column."""

SnapshotStep = Annotated[
    int | None, Query(ge=0, le=MAX_INTEGER, description="A step; unset means the newest.")
]
FeatureNumber = Annotated[int, Path(ge=0, le=MAX_INTEGER)]
PageLimit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=100)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


class Indexed(NamedTuple):
    """The feature index, labels and stars of the run and snapshot that a request names."""

    features: FeatureIndex
    labels: Mapping[int, str]
    stars: frozenset[int]


def _indexed(run_id: str, services: ServicesDep, snapshot: SnapshotStep = None) -> Indexed:
    with services.database.reading() as session:
        index = open_index(services, session, run_id, snapshot)
        return Indexed(index, store.labels(session, run_id), store.stars(session, run_id))


IndexedDep = Annotated[Indexed, Depends(_indexed)]


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
