"""Runs side by side: configurations, metrics and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.orm import Session

from backend import store
from backend.analyses.client import Analysis, Source
from backend.analyses.comparison import best_values, match_obstacle, setting_differences
from backend.errors import ApiError, ConflictError, UnprocessableError
from backend.http.curves import metrics_series
from backend.http.indexes import open_index
from backend.http.parameters import Cursor, PageLimit
from backend.http.progress import NOT_READY, not_ready
from backend.http.services import Services, ServicesDep
from backend.store.models import RunRow
from sae_engine.features.analysis import compare_features
from sae_engine.features.geometry.files import Matches
from sae_engine.features.index.format import IndexDamagedError
from sae_engine.schema.analysis import (
    MATCH_THRESHOLD,
    MAX_COMPARED_RUNS,
    AnalysisProgress,
    Comparison,
    FeatureComparison,
    MatchSection,
)
from sae_engine.schema.features import SortOrder

router = APIRouter(prefix="/compare", tags=["compare"])


def _run_ids(
    runs: Annotated[
        str, Query(max_length=200, description="Ids of runs, separated by commas; A is the first.")
    ],
) -> list[str]:
    ids = [run_id for part in runs.split(",") if (run_id := part.strip())]
    if not 2 <= len(ids) <= MAX_COMPARED_RUNS:
        raise UnprocessableError(
            f"runs = '{runs}' names {len(ids)}; give two to {MAX_COMPARED_RUNS} ids, separated by "
            "commas.",
            kind="invalid",
            field="runs",
        )
    return ids


RunIds = Annotated[list[str], Depends(_run_ids)]


@router.get("")
def compare_runs(
    runs: RunIds, services: ServicesDep, max_points: Annotated[int, Query(ge=1)] = 600
) -> Comparison:
    """The settings in which runs differ, their curves, and the best value of each metric."""
    with services.database.reading() as session:
        rows = [store.get_run(session, run_id) for run_id in runs]
        curves = [store.metrics(session, run_id) for run_id in runs]
        obstacle = _obstacle(services, session, rows[:2])
        shapes = services.run_shapes(session, rows)
    series = [metrics_series(points, max_points=max_points) for points in curves]
    return Comparison(
        runs=shapes,
        differences=setting_differences(shapes),
        curves=series,
        best=[best_values(each) for each in series],
        obstacle=obstacle,
    )


def _obstacle(services: Services, session: Session, rows: Sequence[RunRow]) -> str | None:
    """Why the features of two runs cannot be matched: missing, damaged or not comparable."""
    try:
        indexes = [open_index(services, session, row.id, None) for row in rows]
        return match_obstacle(rows, indexes)
    except ApiError as error:
        return error.detail
    except IndexDamagedError as error:
        return str(error)


@router.get("/features", responses=NOT_READY)
def compare_run_features(
    runs: RunIds,
    services: ServicesDep,
    response: Response,
    section: MatchSection = "mutual",
    threshold: Annotated[float, Query(ge=-1, le=1)] = MATCH_THRESHOLD,
    order: SortOrder | None = None,
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> FeatureComparison | AnalysisProgress:
    """The features of two runs' newest snapshots, A and B, matched by their decoder rows.

    Computed once; 202 with the progress until then.
    """
    if len(runs) != 2:
        raise UnprocessableError(
            f"{len(runs)} runs are too many to match features; give two ids.",
            kind="invalid",
            field="runs",
        )
    with services.database.reading() as session:
        rows = [store.get_run(session, run_id) for run_id in runs]
        a, b = (open_index(services, session, run_id, None) for run_id in runs)
        labels_a, labels_b = (store.labels(session, run_id) for run_id in runs)
        stars_a, stars_b = (store.stars(session, run_id) for run_id in runs)
    obstacle = match_obstacle(rows, [a, b])
    if obstacle is not None:
        raise ConflictError(obstacle, kind="not-comparable")
    # One computation serves both directions.
    first, second = sorted([Source(runs[0], a), Source(runs[1], b)], key=lambda s: s.name)
    matches = services.analyses.get(Analysis("matches", (first, second)), Matches.load)
    if isinstance(matches, AnalysisProgress):
        return not_ready(matches, response)
    return compare_features(
        a,
        b,
        matches if first.run_id == runs[0] else matches.turned(),
        section=section,
        threshold=threshold,
        order=order,
        labels_a=labels_a,
        labels_b=labels_b,
        stars_a=stars_a,
        stars_b=stars_b,
        limit=limit,
        cursor=cursor,
    )
