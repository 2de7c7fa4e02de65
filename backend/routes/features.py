"""Snapshots, features and their labels."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from backend import store
from backend.errors import NotFoundError
from backend.http.indexes import open_index
from backend.http.services import Server
from backend.http.shapes import snapshot_shape
from sae_engine.features.index.history import feature_history
from sae_engine.schema.features import (
    FeatureDetail,
    FeatureHistory,
    FeaturePage,
    FeatureSort,
    FeatureState,
    SortOrder,
)
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.runs import Snapshot

router = APIRouter(prefix="/runs/{run_id}", tags=["features"])

SnapshotStep = Annotated[int | None, Query(ge=0, description="A step; unset is the newest.")]
FeatureIndexNumber = Annotated[int, Path(ge=0)]


@router.get("/snapshots")
def list_snapshots(run_id: str, server: Server) -> list[Snapshot]:
    """The feature indexes that a run has published so far, in order of their steps."""
    with server.database.reading() as session:
        store.get_run(session, run_id)
        return [snapshot_shape(row) for row in store.snapshots(session, run_id)]


@router.get("/features")
def list_features(
    run_id: str,
    server: Server,
    snapshot: SnapshotStep = None,
    sort: FeatureSort = "density",
    order: SortOrder = "desc",
    min_density: Annotated[float | None, Query(ge=0, le=1)] = None,
    max_density: Annotated[float | None, Query(ge=0, le=1)] = None,
    state: FeatureState | None = None,
    q: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> FeaturePage:
    """A page of a run's features; `q` looks in their labels and top tokens."""
    with server.database.reading() as session:
        index = open_index(server, session, run_id, snapshot)
        labels = store.labels(session, run_id)
    return index.features(
        sort=sort,
        order=order,
        min_density=min_density,
        max_density=max_density,
        state=state,
        q=q,
        labels=labels,
        limit=limit,
        cursor=cursor,
    )


@router.get("/features/{index}")
def get_feature(
    run_id: str, index: FeatureIndexNumber, server: Server, snapshot: SnapshotStep = None
) -> FeatureDetail:
    """Everything that a snapshot knows about one feature."""
    with server.database.reading() as session:
        features = open_index(server, session, run_id, snapshot)
        labels = store.labels(session, run_id)
        written = store.label(session, run_id, index)
    _check_exists(index, features.d_sae)
    return features.feature(index, labels=labels, notes=written.notes, starred=written.starred)


@router.get("/features/{index}/history")
def get_history(run_id: str, index: FeatureIndexNumber, server: Server) -> FeatureHistory:
    """What became of one feature over all snapshots."""
    with server.database.reading() as session:
        newest = open_index(server, session, run_id, None)
        _check_exists(index, newest.d_sae)
        steps = [row.step for row in store.snapshots(session, run_id)]
        snapshots = [open_index(server, session, run_id, step) for step in steps]
    return feature_history(snapshots, index)


@router.put("/features/{index}/label")
def put_label(
    run_id: str, index: FeatureIndexNumber, body: LabelUpdate, server: Server
) -> LabelUpdate:
    """Write what a person thinks a feature is; an empty label removes it."""
    with server.database.reading() as session:
        features = open_index(server, session, run_id, None)
    _check_exists(index, features.d_sae)
    with server.database.writing() as session:
        store.set_label(session, run_id, index, body)
    return body


def _check_exists(index: int, d_sae: int) -> None:
    if index >= d_sae:
        raise NotFoundError(
            f"There is no feature {index}; this SAE has features 0 to {d_sae - 1}.",
            kind="feature-not-found",
        )
