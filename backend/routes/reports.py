"""What a run reports while it works: metrics, events, its log and notices, its environment."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from backend import store
from backend.errors import NotFoundError, UnavailableError
from backend.http.curves import metrics_series
from backend.http.events import LISTENER_RETRY_SECONDS
from backend.http.parameters import MAX_INTEGER
from backend.http.services import ServicesDep
from backend.http.shapes import notice_shape
from backend.http.sse import EVENT_STREAM, EventStream
from backend.jobs.environment import recorded_environment
from backend.jobs.logs import tail as log_tail
from sae_engine.schema.machine import Environment
from sae_engine.schema.runs import ENDED, MetricsSeries, Notice

router = APIRouter(prefix="/runs/{run_id}", tags=["metrics"])


@router.get("/metrics")
def get_metrics(
    run_id: str,
    services: ServicesDep,
    keys: Annotated[str, Query(max_length=2_000)] = "",
    since_step: Annotated[int, Query(ge=-1, le=MAX_INTEGER)] = -1,
    max_points: Annotated[int | None, Query(ge=1)] = None,
) -> MetricsSeries:
    """A run's metrics after `since_step`, or those in `keys`, separated by commas.

    More than `max_points` points are downsampled so that every curve keeps its extremes. null means
    not measured at that step.
    """
    names = [name for key in keys.split(",") if (name := key.strip())]
    with services.database.reading() as session:
        store.get_run(session, run_id)
        points = store.metrics(session, run_id, since_step)
    return metrics_series(points, keys=names, max_points=max_points)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {EVENT_STREAM: {}},
            "description": "Events `metrics` (`MetricsEvent`), `status` (`StatusEvent`), "
            "`snapshot` (`Snapshot`), `alert` and `notice` (`Notice`)",
        },
        204: {"description": "The run has ended and there are no more events"},
    },
)
def get_events(
    run_id: str,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_INTEGER)] = None,
) -> Response:
    """A run's events as server-sent events, until the run has ended: first those after the event
    number `after` or `Last-Event-ID`, then new ones as they occur.
    """
    with services.database.reading() as session:
        row = store.get_run(session, run_id)
    last_seen = after if last_event_id is None else last_event_id
    if row.status in ENDED and last_seen >= row.revision:
        return Response(status_code=204)  # stops a browser's EventSource from reconnecting
    if services.events.is_full():
        raise UnavailableError(
            f"This server already has {services.events.max_listeners} event listeners; close some.",
            kind="too-many-listeners",
            retry_after_seconds=LISTENER_RETRY_SECONDS,
        )
    return EventStream(services.events.follow(run_id, last_seen))


@router.get("/log", response_class=PlainTextResponse)
def get_log(
    run_id: str, services: ServicesDep, tail: Annotated[int, Query(ge=0, le=10_000)] = 200
) -> PlainTextResponse:
    """The last `tail` lines of a run's log."""
    with services.database.reading() as session:
        store.get_run(session, run_id)
    return PlainTextResponse(log_tail(services.settings.run_folder(run_id).log, tail))


@router.get("/environment")
def get_environment(run_id: str, services: ServicesDep) -> Environment:
    """The commit, versions and machine that a run was last started with; 404 before its start."""
    with services.database.reading() as session:
        store.get_run(session, run_id)
    found = recorded_environment(services.settings.run_folder(run_id))
    if found is None:
        raise NotFoundError(
            "This run has no record of the versions and the machine that it was started with.",
            kind="environment-not-found",
        )
    return found


@router.get("/notices")
def get_notices(run_id: str, services: ServicesDep) -> list[Notice]:
    """The messages and alerts of a run, oldest first."""
    with services.database.reading() as session:
        store.get_run(session, run_id)
        return [notice_shape(row) for row in store.notices(session, run_id)]
