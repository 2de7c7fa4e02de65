"""Runs side by side: configuration, curves, features."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from backend import store
from backend.analyses.client import Analysis, Source
from backend.analyses.comparison import best_values, config_differences, why_not_matched
from backend.errors import ApiError, ConflictError, UnprocessableError
from backend.http.curves import metrics_series
from backend.http.indexes import open_index
from backend.http.services import Server
from backend.routes.maps import NOT_YET, not_yet
from sae_engine.features.analysis import compare_features
from sae_engine.features.geometry.files import Matches
from sae_engine.schema.analysis import (
    MATCH_THRESHOLD,
    AnalysisProgress,
    Comparison,
    FeatureComparison,
    MatchSection,
)
from sae_engine.schema.features import SortOrder

router = APIRouter(prefix="/compare", tags=["compare"])

MAX_RUNS = 8


def _run_ids(
    runs: Annotated[
        str, Query(max_length=200, description="Ids of runs, separated by commas, A's first.")
    ],
) -> list[str]:
    ids = [run_id for part in runs.split(",") if (run_id := part.strip())]
    if not 2 <= len(ids) <= MAX_RUNS:
        raise UnprocessableError(
            f"runs = '{runs}' names {len(ids)}; give two to {MAX_RUNS} ids, separated by commas.",
            kind="invalid",
            field="runs",
        )
    return ids


RunIds = Annotated[list[str], Depends(_run_ids)]


@router.get("")
def compare_runs(
    runs: RunIds, server: Server, max_points: Annotated[int, Query(ge=1)] = 600
) -> Comparison:
    """In what runs differ, their curves and the best of them; settings that are the same in all
    are left out.
    """
    with server.database.reading() as session:
        rows = [store.get_run(session, run_id) for run_id in runs]
        curves = [store.metrics(session, run_id) for run_id in runs]
        try:
            obstacle = why_not_matched(
                rows[:2], [open_index(server, session, run_id, None) for run_id in runs[:2]]
            )
        except ApiError as error:
            obstacle = error.detail
        shapes = server.shapes(session, rows)
    series = [metrics_series(points, max_points=max_points) for points in curves]
    return Comparison(
        runs=shapes,
        differences=config_differences([shape.config for shape in shapes]),
        curves=series,
        best=[best_values(each) for each in series],
        obstacle=obstacle,
    )


@router.get("/features", responses=NOT_YET)
def compare_run_features(
    runs: RunIds,
    server: Server,
    response: Response,
    section: MatchSection = "mutual",
    threshold: Annotated[float, Query(ge=-1, le=1)] = MATCH_THRESHOLD,
    order: SortOrder | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> FeatureComparison | AnalysisProgress:
    """The newest features of two runs, A's and B's, matched by their decoder rows. Computed once;
    until then 202 with how far it is.
    """
    if len(runs) != 2:
        raise UnprocessableError(
            f"Features of {len(runs)} runs cannot be matched at once; give two ids.",
            kind="invalid",
            field="runs",
        )
    with server.database.reading() as session:
        rows = [store.get_run(session, run_id) for run_id in runs]
        a, b = (open_index(server, session, run_id, None) for run_id in runs)
        labels_a, labels_b = (store.labels(session, run_id) for run_id in runs)
    obstacle = why_not_matched(rows, [a, b])
    if obstacle is not None:
        raise ConflictError(obstacle, kind="not-comparable")
    # One computation serves both directions.
    first, second = sorted([Source(runs[0], a), Source(runs[1], b)], key=lambda s: s.name)
    matches = server.analyses.get(Analysis("matches", (first, second)), Matches.load)
    if isinstance(matches, AnalysisProgress):
        return not_yet(matches, response)
    return compare_features(
        a,
        b,
        matches if first.run_id == runs[0] else matches.turned(),
        section=section,
        threshold=threshold,
        order=order,
        labels_a=labels_a,
        labels_b=labels_b,
        limit=limit,
        cursor=cursor,
    )
