"""A run's snapshots, features and lookups, and the labels that people write."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend import store
from backend.http.indexes import open_index, readable_indexes
from backend.http.parameters import (
    Cursor,
    FeatureNumber,
    IndexedDep,
    PageLimit,
    check_path_feature,
)
from backend.http.services import ServicesDep
from backend.http.shapes import snapshot_shape
from sae_engine.features.index.history import feature_history
from sae_engine.schema.features import (
    FeatureDetail,
    FeatureHistory,
    FeatureMark,
    FeaturePage,
    FeatureSort,
    FeatureState,
    SortOrder,
)
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch
from sae_engine.schema.runs import Snapshot

router = APIRouter(prefix="/runs/{run_id}", tags=["features"])


@router.get("/snapshots")
def list_snapshots(run_id: str, services: ServicesDep) -> list[Snapshot]:
    """The feature indexes that a run has published so far, by step."""
    with services.database.reading() as session:
        store.get_run(session, run_id)
        return [snapshot_shape(row) for row in store.snapshots(session, run_id)]


@router.get("/features")
def list_features(
    indexed: IndexedDep,
    sort: FeatureSort = "density",
    order: SortOrder = "desc",
    min_density: Annotated[float | None, Query(ge=0, le=1)] = None,
    max_density: Annotated[float | None, Query(ge=0, le=1)] = None,
    state: FeatureState | None = None,
    mark: FeatureMark | None = None,
    q: Annotated[str, Query(max_length=200)] = "",
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> FeaturePage:
    """A page of a run's features; `q` searches labels and top tokens."""
    return indexed.features.features(
        sort=sort,
        order=order,
        min_density=min_density,
        max_density=max_density,
        state=state,
        mark=mark,
        q=q,
        labels=indexed.labels,
        stars=indexed.stars,
        limit=limit,
        cursor=cursor,
    )


@router.get("/features/{index}")
def get_feature(
    run_id: str, index: FeatureNumber, indexed: IndexedDep, services: ServicesDep
) -> FeatureDetail:
    """Everything that a snapshot holds about one feature."""
    features, labels, stars = indexed
    check_path_feature(index, features.d_sae)
    with services.database.reading() as session:
        notes = store.label(session, run_id, index).notes
    return features.feature(index, labels=labels, stars=stars, notes=notes)


@router.get("/features/{index}/history")
def get_history(run_id: str, index: FeatureNumber, services: ServicesDep) -> FeatureHistory:
    """One feature's density and direction in every snapshot that can be read."""
    with services.database.reading() as session:
        snapshots, missing = readable_indexes(services, session, run_id)
    check_path_feature(index, snapshots[-1].d_sae)
    return feature_history(snapshots, index, missing)


@router.put("/features/{index}/label")
def put_label(
    run_id: str, index: FeatureNumber, body: LabelUpdate, services: ServicesDep
) -> LabelUpdate:
    """Write a feature's label, notes and star; an empty label removes it."""
    with services.database.reading() as session:
        features = open_index(services, session, run_id, None)
    check_path_feature(index, features.d_sae)
    with services.database.writing() as session:
        store.set_label(session, run_id, index, body)
    return body


@router.get("/lookup")
def lookup(
    indexed: IndexedDep,
    text: Annotated[str, Query(min_length=1, max_length=500)],
    match: TokenMatch = "fold",
    exact_case: bool = False,
    rank: LookupRank = "f1",
    min_count: Annotated[int, Query(ge=1)] = 5,
    limit: PageLimit = 20,
) -> LookupResult:
    """The features that fire on a token, or on the last token of a text, best match first.

    `fold` and `exact` find the token that is `text` or, if there is none, every occurrence of
    `text`; `text` always does the latter, `regex` finds an RE2 expression. `prefix` and `substring`
    find tokens that contain `text`. All but `exact` ignore case unless `exact_case` is set.
    """
    return indexed.features.lookup(
        text,
        match=match,
        exact_case=exact_case,
        rank=rank,
        min_count=min_count,
        limit=limit,
        labels=indexed.labels,
    )
