"""The events of runs, streamed to any number of listeners.

Every transaction that reports something about a run has a number, the run's revision
(`store.common.next_revision`). The rows themselves are the event log: a listener that names the
last revision it saw gets exactly what followed, from any server and after any restart. One poll of
the database serves all listeners.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from itertools import groupby
from typing import NamedTuple

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from backend import store
from backend.http.curves import metric_value
from backend.http.shapes import notice_shape, run_error, snapshot_shape
from backend.http.sse import comment_text, event_text, number_text, retry_text
from backend.store.database import Database, log_failure
from sae_engine.schema.runs import ENDED, MetricsEvent, StatusEvent

POLL_SECONDS = 0.5
REVISIONS_AT_A_TIME = 500
"""Revisions of a long history that are read and sent at once."""
MAX_LISTENERS = 1_000
"""Fewer where few files may be open."""
LISTENER_RETRY_SECONDS = 10
"""When a listener that found no place may try again."""
SILENCE_SECONDS = 15.0
"""A comment keeps the connection open after this long without an event."""

_log = logging.getLogger(__name__)


class Event(NamedTuple):
    """One event of a run's stream."""

    revision: int
    name: str
    body: BaseModel


class EventFeed:
    """Follows runs for its listeners; all of them must use it from one event loop."""

    def __init__(
        self,
        database: Database,
        poll_seconds: float = POLL_SECONDS,
        max_listeners: int = MAX_LISTENERS,
    ) -> None:
        self.max_listeners = max_listeners
        self._is_closing = False
        self._database = database
        self._poll_seconds = poll_seconds
        self._listeners: Counter[str] = Counter()
        self._latest: dict[str, store.Latest] = {}
        self._polled = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None
        self._reads: dict[tuple[str, int, int], asyncio.Task[str]] = {}

    def is_full(self) -> bool:
        """Whether the limit on listeners is reached."""
        return self._listeners.total() >= self.max_listeners

    async def follow(self, run_id: str, after: int) -> AsyncGenerator[str]:
        """The events of a run that follow revision `after`, as text of an event stream.

        The stream ends after the last event of a run that has ended or was deleted. It also ends
        when the server does, and if polling fails unexpectedly; a listener that reconnects starts
        it again.
        """
        if self.is_full():  # requests that came at once may all have found a place
            yield retry_text(LISTENER_RETRY_SECONDS)
            return
        self._listeners[run_id] += 1
        try:
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll())
            poller = self._poller
            self._latest |= await run_in_threadpool(self._latest_revisions, [run_id])
            sent_at = time.monotonic()
            while (latest := self._latest.get(run_id)) is not None:
                if latest.revision > after:
                    upto = min(latest.revision, after + REVISIONS_AT_A_TIME)
                    yield await self._read(run_id, after, upto)
                    after, sent_at = upto, time.monotonic()
                elif latest.status in ENDED or self._poller is not poller or self._is_closing:
                    return
                elif time.monotonic() - sent_at > SILENCE_SECONDS:
                    yield comment_text("nothing new")
                    sent_at = time.monotonic()
                else:
                    async with self._polled:
                        await self._polled.wait()
        finally:
            self._listeners[run_id] -= 1
            if not self._listeners[run_id]:
                del self._listeners[run_id]
                self._latest.pop(run_id, None)

    def close(self) -> None:
        """End all streams; to be called in their event loop."""
        self._is_closing = True

    async def _poll(self) -> None:
        """Look for new revisions while there are listeners."""
        try:
            while self._listeners:
                await self._look()
                async with self._polled:
                    self._polled.notify_all()
                await asyncio.sleep(self._poll_seconds)
        except Exception:
            _log.exception("the event feed failed; its listeners are disconnected")
        self._poller = None
        async with self._polled:
            self._polled.notify_all()

    async def _look(self) -> None:
        followed = list(self._listeners)
        try:
            latest = await run_in_threadpool(self._latest_revisions, followed)
        except SQLAlchemyError as error:
            log_failure(_log, "cannot read the runs' latest revisions; trying again", error)
            return
        for run_id in followed:
            self._latest.pop(run_id, None)  # deleted runs do not come back
        self._latest |= latest

    def _latest_revisions(self, run_ids: Sequence[str]) -> dict[str, store.Latest]:
        with self._database.reading() as session:
            return store.latest_revisions(session, run_ids)

    async def _read(self, run_id: str, after: int, upto: int) -> str:
        """The text of revisions `after` + 1 to `upto`, read once for simultaneous listeners."""
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
    """The events of revisions `after` + 1 to `upto`, in order."""
    row = store.get_run(session, run_id)
    events: list[Event] = []
    if row.status_revision > after:
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
    """Events as text of an event stream.

    Only the last event of a revision carries its number, so a listener that is cut off inside a
    revision gets all of it again.
    """
    parts: list[str] = []
    for revision, group in groupby(events, key=lambda event: event.revision):
        *others, last = group
        parts += [event_text(event.name, event.body) for event in others]
        parts.append(event_text(last.name, last.body, revision))
    if not events or events[-1].revision < upto:  # its rows are gone, as after a resume
        parts.append(number_text(upto))
    return "".join(parts)
