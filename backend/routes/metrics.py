"""What a run reports while it works: curves, log, notices."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse

from backend import repository
from backend.curves import metrics_series
from backend.logs import tail as log_tail
from backend.services import Server
from backend.shapes import notice_shape
from sae_engine.schema.runs import MetricsSeries, Notice

router = APIRouter(prefix="/runs/{run_id}", tags=["metrics"])


@router.get("/metrics")
def get_metrics(
    run_id: str,
    server: Server,
    keys: Annotated[str, Query(max_length=2_000)] = "",
    since_step: Annotated[int, Query(ge=-1)] = -1,
    max_points: Annotated[int | None, Query(ge=1)] = None,
) -> MetricsSeries:
    """A run's curves after `since_step`. `keys` chooses some, separated by commas. With more than
    `max_points` points they are thinned so that every curve keeps its extremes. null: not measured
    at that step.
    """
    names = [name for key in keys.split(",") if (name := key.strip())]
    with server.database.reading() as session:
        repository.get_run(session, run_id)
        points = repository.metrics(session, run_id, since_step)
    return metrics_series(points, keys=names, max_points=max_points)


@router.get("/log", response_class=PlainTextResponse)
def get_log(
    run_id: str, server: Server, tail: Annotated[int, Query(ge=0, le=10_000)] = 200
) -> PlainTextResponse:
    """The last `tail` lines of a run's log."""
    with server.database.reading() as session:
        repository.get_run(session, run_id)
    return PlainTextResponse(log_tail(server.settings.run_folder(run_id).log, tail))


@router.get("/notices")
def get_notices(run_id: str, server: Server) -> list[Notice]:
    """What the run wanted people to know, oldest first."""
    with server.database.reading() as session:
        repository.get_run(session, run_id)
        return [notice_shape(row) for row in repository.notices(session, run_id)]
