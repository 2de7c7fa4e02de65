"""What a run reports while it works: curves, log, notices."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from backend import store
from backend.errors import UnavailableError
from backend.http.curves import metrics_series
from backend.http.events import MAX_LISTENERS
from backend.http.services import Server
from backend.http.shapes import notice_shape
from backend.jobs.logs import tail as log_tail
from sae_engine.schema.runs import ENDED, MetricsSeries, Notice

EVENT_STREAM = "text/event-stream"
MAX_REVISION = 2**31 - 1

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
        204: {"description": "The run has ended and everything is told"},
    },
)
def get_events(
    run_id: str,
    server: Server,
    after: Annotated[int, Query(ge=0, le=MAX_REVISION)] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_REVISION)] = None,
) -> Response:
    """What happens to a run, as server-sent events: first all that was told after the event number
    `after` or `Last-Event-ID`, then what comes, until the run has ended.
    """
    with server.database.reading() as session:
        row = store.get_run(session, run_id)
    known = after if last_event_id is None else last_event_id
    if row.status in ENDED and known >= row.revision:
        return Response(status_code=204)  # tells a browser's EventSource not to ask again
    if server.events.is_full():
        raise UnavailableError(
            f"{MAX_LISTENERS} listeners follow runs of this server already; close some.",
            kind="too-many-listeners",
            retry_after_seconds=10,
        )
    return StreamingResponse(
        server.events.follow(run_id, known),
        media_type=EVENT_STREAM,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/log", response_class=PlainTextResponse)
def get_log(
    run_id: str, server: Server, tail: Annotated[int, Query(ge=0, le=10_000)] = 200
) -> PlainTextResponse:
    """The last `tail` lines of a run's log."""
    with server.database.reading() as session:
        store.get_run(session, run_id)
    return PlainTextResponse(log_tail(server.settings.run_folder(run_id).log, tail))


@router.get("/notices")
def get_notices(run_id: str, server: Server) -> list[Notice]:
    """What the run wanted people to know, oldest first."""
    with server.database.reading() as session:
        store.get_run(session, run_id)
        return [notice_shape(row) for row in store.notices(session, run_id)]
