"""What happens to runs, as a stream to everyone who listens.

Every transaction that tells something of a run has a number, its revision (`next_revision`). The
rows themselves are the record of what was told, so a listener that says which revision it had last
gets exactly what came after it, from any server and after any restart. The database is asked once
for all listeners whether anything is new.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from itertools import groupby
from typing import NamedTuple

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from backend import store
from backend.http.curves import metric_value
from backend.http.shapes import notice_shape, run_error, snapshot_shape
from backend.store.database import Database
from sae_engine.schema.runs import ENDED, MetricsEvent, StatusEvent

POLL_SECONDS = 0.5
REVISIONS_AT_A_TIME = 500
"""How much of a long history is read and sent at once."""
MAX_LISTENERS = 1_000
SILENCE_SECONDS = 15.0
"""After so long without an event a comment keeps the connection open."""

_log = logging.getLogger(__name__)


class Event(NamedTuple):
    """Something told of a run."""

    revision: int
    name: str
    body: BaseModel


class EventFeed:
    """Follows runs for any number of listeners; belongs to the event loop that it is used in."""

    def __init__(self, database: Database, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._listeners: Counter[str] = Counter()
        self._latest: dict[str, store.Latest] = {}
        self._news = asyncio.Condition()
        self._watch: asyncio.Task[None] | None = None
        self._reads: dict[tuple[str, int, int], asyncio.Task[str]] = {}

    def is_full(self) -> bool:
        """Whether there are as many listeners as one server takes."""
        return self._listeners.total() >= MAX_LISTENERS

    async def follow(self, run_id: str, after: int) -> AsyncGenerator[str]:
        """The events of a run that come after a revision, as text of an event stream; ends when
        the run has ended or is deleted, and all of it is told.
        """
        self._listeners[run_id] += 1
        try:
            if self._watch is None or self._watch.done():
                self._watch = asyncio.create_task(self._keep_watching())
            self._latest |= await run_in_threadpool(self._ask, [run_id])
            spoke_at = time.monotonic()
            while (latest := self._latest.get(run_id)) is not None:
                if latest.revision > after:
                    upto = min(latest.revision, after + REVISIONS_AT_A_TIME)
                    yield await self._read(run_id, after, upto)
                    after, spoke_at = upto, time.monotonic()
                elif latest.status in ENDED:
                    return
                elif time.monotonic() - spoke_at > SILENCE_SECONDS:
                    yield format_sse_event(comment="nothing new").decode()
                    spoke_at = time.monotonic()
                else:
                    async with self._news:
                        await self._news.wait()
        finally:
            self._listeners[run_id] -= 1
            if not self._listeners[run_id]:
                del self._listeners[run_id]
                self._latest.pop(run_id, None)

    async def _keep_watching(self) -> None:
        """Ask what is new while anybody listens."""
        while self._listeners:
            followed = list(self._listeners)
            try:
                latest = await run_in_threadpool(self._ask, followed)
            except SQLAlchemyError:
                _log.exception("cannot ask what is new; trying again")
            else:
                for run_id in followed:
                    self._latest.pop(run_id, None)  # deleted ones stay away
                self._latest |= latest
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(self._poll_seconds)

    def _ask(self, run_ids: Sequence[str]) -> dict[str, store.Latest]:
        with self._database.reading() as session:
            return store.latest_revisions(session, run_ids)

    async def _read(self, run_id: str, after: int, upto: int) -> str:
        """What listeners want at the same time is read once."""
        key = (run_id, after, upto)
        task = self._reads.get(key)
        if task is None:
            task = asyncio.create_task(run_in_threadpool(self._text, run_id, after, upto))
            self._reads[key] = task
            task.add_done_callback(lambda _: self._reads.pop(key, None))
        return await asyncio.shield(task)

    def _text(self, run_id: str, after: int, upto: int) -> str:
        with self._database.reading() as session:
            events = events_between(session, run_id, after, upto)
        return stream_text(events, upto)


def events_between(session: Session, run_id: str, after: int, upto: int) -> list[Event]:
    """What was told of a run in revisions `after` + 1 to `upto`, in order."""
    row = store.get_run(session, run_id)
    events: list[Event] = []
    if after < row.status_revision <= upto:
        body = StatusEvent.model_validate(
            {"status": row.status, "step": row.step, "error": run_error(row)}
        )
        events.append(Event(row.status_revision, "status", body))
    points = store.metrics_between(session, run_id, after, upto)
    for place, revision in enumerate(points.revision.tolist()):
        body = MetricsEvent.model_validate(
            {
                "step": int(points.step[place]),
                "tokens": int(points.tokens[place]),
                "time": float(points.time[place]),
                "values": {n: metric_value(v) for n, v in points.values_at(place).items()},
            }
        )
        events.append(Event(revision, "metrics", body))
    for snapshot in store.snapshots(session, run_id, after):
        events.append(Event(snapshot.revision, "snapshot", snapshot_shape(snapshot)))
    for notice in store.notices(session, run_id, after):
        name = "notice" if notice.kind is None else "alert"
        events.append(Event(notice.revision, name, notice_shape(notice)))
    kept = [event for event in events if event.revision <= upto]
    return sorted(kept, key=lambda event: event.revision)


def stream_text(events: Sequence[Event], upto: int) -> str:
    """Events as they stand in the stream. The last of a revision carries its number: a listener
    that is cut off in the middle of one gets all of it again.
    """
    parts: list[bytes] = []
    for revision, group in groupby(events, key=lambda event: event.revision):
        *others, last = group
        for event in others:
            parts.append(_formatted(event, None))
        parts.append(_formatted(last, revision))
    if not events or events[-1].revision < upto:  # what was told then is gone, as after a resume
        parts.append(format_sse_event(id=str(upto)))
    return b"".join(parts).decode()


def _formatted(event: Event, number: int | None) -> bytes:
    return format_sse_event(
        data_str=event.body.model_dump_json(),
        event=event.name,
        id=None if number is None else str(number),
    )
