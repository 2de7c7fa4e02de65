"""Carrying runs through: the engine's records become rows, and every way it can end is written
down.

Used by a job's process and by training in the foreground. No torch here: the engine comes in as
`train`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from backend import store
from backend.jobs.alerts import Alert, AlertWatch, free_bytes
from backend.jobs.logs import tail
from backend.jobs.run_log import RunLog
from backend.store.database import DISK_FULL, Database, lacks_room
from sae_engine.errors import DiskFullError, UserError
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    FailureRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
    StartRecord,
    StopRequest,
)
from sae_engine.schema.runs import RunStatus
from sae_engine.training.member import Member

POLL_SECONDS = 0.25
"""How often a pass looks whether its runs should stop, and how long a run's measurements wait to be
stored together; of several runs on a pass each waits so many times as long, within
`LONGEST_WAIT_SECONDS`.
"""
LONGEST_WAIT_SECONDS = 2.0
SPEED_WINDOW = 20
"""Points on the curve from which the remaining time is told."""
LOG_TAIL_LINES = 60
MAX_WRITE_TRIES = 5
DISK_LOOK_SECONDS = 30.0

_log = logging.getLogger(__name__)


Train = Callable[[Sequence[Member]], Iterator[tuple[int, AnyRecord]]]
"""The engine's door, `sae_engine.training.loop.train_together`."""


class Task(NamedTuple):
    """One run of the database that is to be carried out."""

    run_id: str
    config: RunConfig
    folder: RunFolder
    resume: bool


class Terminated(BaseException):
    """The process was told by a signal to end at once; its text names the signal."""


def work(
    database: Database,
    tasks: Sequence[Task],
    train: Train,
    *,
    on_record: Callable[[int, AnyRecord], None] = lambda _number, _record: None,
) -> list[RunStatus]:
    """Run the engine to its end and store what it yields; returns how each run ended.

    The runs share a pass of the language model; what ends the pass ends those that still run.
    Raises `DiskFullError` where there is not even room to store how they ended.
    """
    wait_seconds = min(POLL_SECONDS * len(tasks), LONGEST_WAIT_SECONDS)
    recorders = [Recorder(database, task, wait_seconds=wait_seconds) for task in tasks]
    logs = [RunLog(task.run_id) for task in tasks]
    requests = StopRequests(database, [task.run_id for task in tasks])
    ended: dict[int, RunStatus] = {}

    def fail(number: int, status: RunStatus, kind: str, message: str) -> None:
        ended[number] = status
        log_tail = tail(tasks[number].folder.log, LOG_TAIL_LINES)
        recorders[number].fail(status, kind, message, log_tail)

    def fail_rest(status: RunStatus, kind: str, message: str) -> None:
        for number in range(len(tasks)):
            if number not in ended:
                fail(number, status, kind, message)

    def should_stop(number: int) -> StopRequest:
        recorders[number].store_waiting()
        return requests.of(tasks[number].run_id)

    members = [
        Member(task.config, task.folder, partial(should_stop, number), task.resume)
        for number, task in enumerate(tasks)
    ]
    try:
        for number, record in train(members):
            logs[number].tell(record)
            if isinstance(record, FailureRecord):
                _log.error("run %s cannot go on: %s", tasks[number].run_id, record.message)
                fail(number, "failed", record.error_type, record.message)
            else:
                recorders[number].record(record)
            if isinstance(record, EndRecord):
                ended[number] = record.reason
            on_record(number, record)
        if len(ended) < len(tasks):
            raise RuntimeError("the engine stopped without saying how the run ended")
    except UserError as error:
        _log.exception("the run cannot go on")
        fail_rest("failed", type(error).__name__, str(error))
    except (Terminated, KeyboardInterrupt) as error:
        signal_name = str(error) or "SIGINT"
        _log.warning("ended by %s", signal_name)
        message = f"The run was ended from outside by {signal_name}."
        fail_rest("interrupted", signal_name, message)
    except Exception as error:
        _log.exception("the run failed")
        first_line = next(iter(str(error).splitlines()), "")[:500]
        message = first_line or "It gave no reason; see the log."
        fail_rest("failed", type(error).__name__, message)
    return [ended[number] for number in range(len(tasks))]


class StopRequests:
    """What the runs on a pass are asked to do; the database is asked once for all of them."""

    def __init__(self, database: Database, run_ids: Sequence[str]) -> None:
        self._database = database
        self._requests = dict.fromkeys(run_ids, StopRequest.NONE)
        self._next_poll = 0.0

    def of(self, run_id: str) -> StopRequest:
        """Cheap enough to be called in every step."""
        at = time.monotonic()
        if at >= self._next_poll:
            self._next_poll = at + POLL_SECONDS
            with self._database.reading() as session:
                self._requests = store.stop_requests(session, list(self._requests))
        return self._requests[run_id]


class Recorder:
    """Writes one run's records into the database as they come."""

    def __init__(
        self,
        database: Database,
        task: Task,
        *,
        wait_seconds: float = POLL_SECONDS,
    ) -> None:
        """A measurement waits at most `wait_seconds` for others to be stored with."""
        self._database = database
        self._run_id = task.run_id
        self._folder = task.folder
        self._watch = AlertWatch(task.config)
        self._next_disk_look = 0.0
        self._wait_seconds = wait_seconds
        self._waiting: list[MetricsRecord] = []
        self._first: MetricsRecord | None = None
        self._recent: deque[MetricsRecord] = deque(maxlen=SPEED_WINDOW)
        self._next_write = 0.0
        with database.reading() as session:
            row = store.get_run(session, task.run_id)
            self._latest = row.latest_metrics
            self._total_tokens = row.total_tokens
            self._device = row.device if row.slot is not None else None

    def record(self, record: AnyRecord) -> None:
        """Store a record; measurements that come in quick succession are stored together."""
        if isinstance(record, MetricsRecord):
            self._waiting.append(record)
            self.store_waiting()
            return
        self._flush()
        self._write(lambda session: self._store(session, record))

    def store_waiting(self) -> None:
        """Store the measurements that have waited long enough."""
        if self._waiting and time.monotonic() >= self._next_write:
            self._flush()

    def fail(self, status: RunStatus, kind: str, message: str, log_tail: str) -> None:
        """Store that the run failed or was interrupted."""
        self._flush()
        self._write(
            lambda session: store.fail_run(
                session, self._run_id, status, kind=kind, message=message, log_tail=log_tail
            )
        )

    def _store(self, session: Session, record: AnyRecord) -> None:
        run_id = self._run_id
        match record:
            case PhaseRecord():
                store.update_run(session, run_id, phase=record.phase)
            case PlanRecord():
                self._total_tokens = record.total_tokens
                store.update_run(
                    session,
                    run_id,
                    total_steps=record.total_steps,
                    total_tokens=record.total_tokens,
                    device=self._device or record.device,
                )
            case StartRecord():
                store.forget_after(session, run_id, record.step)
                store.update_run(session, run_id, step=record.step, tokens=record.tokens)
                if record.step:
                    message = f"It was resumed at step {record.step:,}."
                    store.add_notice(
                        session, run_id, level="info", message=message, step=record.step
                    )
            case SnapshotRecord():
                store.add_snapshot(session, run_id, record)
            case NoticeRecord():
                store.add_notice(
                    session, run_id, level=record.level, message=record.message, step=record.step
                )
            case EndRecord():
                store.update_run(session, run_id, step=record.step, tokens=record.tokens)
                store.end_run(session, run_id, record.reason)
            case MetricsRecord() | FailureRecord():
                raise AssertionError("measurements are stored by _flush, failures by fail")

    def _flush(self) -> None:
        if not self._waiting:
            return
        records = self._waiting
        alerts = self._alerts(records)
        self._recent.extend(records)
        self._first = self._first or records[0]
        for record in records:
            self._latest.update(record.values)
        self._write(lambda session: self._store_metrics(session, records, alerts))
        self._waiting = []
        self._next_write = time.monotonic() + self._wait_seconds

    def _alerts(self, records: Sequence[MetricsRecord]) -> list[Alert]:
        alerts = [alert for record in records for alert in self._watch.look(record)]
        if time.monotonic() >= self._next_disk_look:
            self._next_disk_look = time.monotonic() + DISK_LOOK_SECONDS
            checkpoint = self._folder.checkpoint
            size = checkpoint.stat().st_size if checkpoint.exists() else 0
            free = free_bytes(self._folder.path)
            alerts += self._watch.look_at_disk(records[-1].step, free, size)
        return alerts

    def _store_metrics(
        self, session: Session, records: Sequence[MetricsRecord], alerts: Sequence[Alert]
    ) -> None:
        store.add_metrics(session, self._run_id, records)
        for alert in alerts:
            store.add_notice(
                session,
                self._run_id,
                level="warning",
                kind=alert.kind,
                message=alert.message,
                step=alert.step,
            )
        last = records[-1]
        speed = _speed(self._recent[0], last)
        store.update_metrics(
            session,
            self._run_id,
            self._latest,
            step=last.step,
            tokens=last.tokens,
            tokens_per_second=speed,
            eta_seconds=self._eta_seconds(last),
        )

    def _eta_seconds(self, last: MetricsRecord) -> float | None:
        """By the speed since this process began, as evaluations and snapshots are far between."""
        speed = _speed(self._first or last, last)
        if not speed or speed < 0 or self._total_tokens is None:
            return None
        return max(0, self._total_tokens - last.tokens) / speed

    def _write(self, action: Callable[[Session], object]) -> None:
        """Do `action` in a transaction; a database that stays locked is tried again."""
        for attempt in range(1, MAX_WRITE_TRIES + 1):
            try:
                with self._database.writing() as session:
                    action(session)
                return
            except OperationalError as error:
                if lacks_room(error):
                    raise DiskFullError(DISK_FULL) from error
                if attempt == MAX_WRITE_TRIES or "lock" not in str(error.orig):
                    raise
                _log.warning("the database is locked, trying again: %s", error)


def _speed(first: MetricsRecord, last: MetricsRecord) -> float | None:
    """Training tokens per second between two points, evaluations and snapshots included."""
    seconds = last.time - first.time
    if seconds > 0:
        return (last.tokens - first.tokens) / seconds
    reported = last.values.get("tokens_per_second")
    return reported if reported is not None and math.isfinite(reported) else None
