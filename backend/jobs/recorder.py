"""Stores what the engine yields about one run as rows of the database."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from sqlalchemy.orm import Session

from backend import store
from backend.jobs.alerts import Alert, AlertWatch, free_bytes
from backend.jobs.load import ProcessLoad
from backend.jobs.remaining import Remaining
from backend.jobs.retry import when_available
from backend.store.database import Database
from backend.store.models import RunRow
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
)
from sae_engine.schema.runs import RunStatus
from sae_engine.training.member import Member

PROGRESS_SECONDS = 1.0
"""Shortest time between writes of a phase's progress."""
BATCH_SECONDS = 0.25
"""How long measurements are collected before they are stored together."""
SPEED_WINDOW = 20
"""Points on the curve over which the current speed is measured."""
DISK_CHECK_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Recorder:
    """Stores one run's records; waits while the database is unavailable."""

    def __init__(
        self,
        database: Database,
        run_id: str,
        member: Member,
        *,
        job: str,
        batch_seconds: float = BATCH_SECONDS,
        load: ProcessLoad | None = None,
    ) -> None:
        self.deadline = math.inf
        """Until when (`time.monotonic`) to wait for an unavailable database."""
        self._database = database
        self._job = job
        self.is_superseded = False
        """Whether a write was refused because another job has the run."""
        self._run_id = run_id
        self._folder = member.folder
        self._config = member.config
        self._watch = AlertWatch(member.config)
        self._load = load
        self._next_disk_check = 0.0
        self._next_progress = 0.0
        self._expected_end: float | None = None
        """When training is expected to end (`time.monotonic`)."""
        self._batch_seconds = batch_seconds
        self._next_batch = 0.0
        self._waiting: list[MetricsRecord] = []
        self._alerts: list[Alert] = []
        self._remaining = Remaining()
        self._recent: deque[MetricsRecord] = deque(maxlen=SPEED_WINDOW)
        row = when_available(self._row)
        self._latest = row.latest_metrics
        self._total_tokens = row.total_tokens
        self._device = row.device if row.slot is not None else None
        self._visible_device: str | None = None
        """The device as this process sees it, which may see only one of several GPUs."""

    def record(self, record: AnyRecord) -> None:
        """Store a record; measurements in quick succession are stored together."""
        if isinstance(record, MetricsRecord):
            self._add(record)
            self.store_waiting()
            return
        if isinstance(record, PhaseRecord) and record.done not in (None, 1):
            if time.monotonic() < self._next_progress:
                return
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
        self._flush()
        self._write(lambda session: self._store(session, record))

    def store_waiting(self) -> None:
        """Store the measurements that have waited long enough."""
        if time.monotonic() >= self._next_batch:
            self._flush()

    def look_for_successor(self) -> bool:
        """Whether another job has the run by now."""
        self._write(lambda _: None)
        return self.is_superseded

    def fail(self, status: RunStatus, kind: str, message: str, log_tail: str) -> None:
        """Store that the run failed or was interrupted."""
        self._flush()
        self._write(
            lambda session: store.fail_run(
                session, self._run_id, status, kind=kind, message=message, log_tail=log_tail
            )
        )

    def _row(self) -> RunRow:
        with self._database.reading() as session:
            return store.get_run(session, self._run_id)

    def _add(self, measured: MetricsRecord) -> None:
        load = self._load.read(self._visible_device) if self._load is not None else {}
        record = measured.model_copy(update={"values": measured.values | load})
        self._waiting.append(record)
        self._recent.append(record)
        self._remaining.add(record)
        self._latest.update(record.values)
        self._alerts += self._watch.look(record)
        if time.monotonic() >= self._next_disk_check:
            self._next_disk_check = time.monotonic() + DISK_CHECK_SECONDS
            checkpoint = self._folder.checkpoint
            size = checkpoint.stat().st_size if checkpoint.exists() else 0
            free = free_bytes(self._folder.path)
            self._alerts += self._watch.look_at_disk(record.step, free, size)

    def _store_size(self, session: Session, plan: PlanRecord) -> None:
        """Set the size of an imported SAE, which is known once it is loaded."""
        if self._config.sae.pretrained is None:
            return
        sae = self._config.sae.of_loaded(plan.d_sae, plan.k).model_dump(mode="json")
        config = store.get_run(session, self._run_id).config
        store.update_run(session, self._run_id, config={**config, "sae": sae})

    def _store(self, session: Session, record: AnyRecord) -> None:
        run_id = self._run_id
        match record:
            case PhaseRecord():
                eta_seconds = self._remaining_seconds()
                store.update_run(session, run_id, phase=record.text, eta_seconds=eta_seconds)
            case PlanRecord():
                self._total_tokens = record.total_tokens
                self._visible_device = record.device
                device = self._device or record.device
                plan = record.model_copy(update={"device": device})
                store.update_run(
                    session,
                    run_id,
                    total_steps=record.total_steps,
                    total_tokens=record.total_tokens,
                    device=device,
                    chosen=plan.chosen(self._config),
                )
                self._store_size(session, record)
            case StartRecord():
                self._latest = store.forget_after(session, run_id, record.step)
                store.update_metrics(
                    session, run_id, self._latest, step=record.step, tokens=record.tokens
                )
                if record.step:
                    message = f"Resumed at step {record.step:,}."
                    store.add_notice(
                        session, run_id, level="info", message=message, step=record.step
                    )
            case SnapshotRecord():
                store.add_snapshot(session, run_id, record)
            case NoticeRecord():
                self._add_notice(session, record)
            case EndRecord():
                store.update_run(session, run_id, step=record.step, tokens=record.tokens)
                store.end_run(session, run_id, record.reason)
            case MetricsRecord() | FailureRecord():
                raise AssertionError("measurements are stored by _flush, failures by fail")

    def _add_notice(self, session: Session, record: NoticeRecord) -> None:
        """Store a notice, unless it is about the whole run and an earlier start has stored it."""
        message, step = record.message, record.step
        known = store.notices(session, self._run_id) if step is None else ()
        if not any((n.message, n.step) == (message, None) for n in known):
            store.add_notice(session, self._run_id, level=record.level, message=message, step=step)

    def _flush(self) -> None:
        if self._waiting:
            self._write(self._store_waiting)
            self._waiting, self._alerts = [], []
            self._next_batch = time.monotonic() + self._batch_seconds

    def _store_waiting(self, session: Session) -> None:
        store.add_metrics(session, self._run_id, self._waiting)
        for alert in self._alerts:
            store.add_notice(
                session,
                self._run_id,
                level="warning",
                kind=alert.kind,
                message=alert.message,
                step=alert.step,
            )
        last = self._waiting[-1]
        self._expected_end = self._end_expected()
        store.update_metrics(
            session,
            self._run_id,
            self._latest,
            step=last.step,
            tokens=last.tokens,
            tokens_per_second=_speed(self._recent[0], last),
            eta_seconds=self._remaining_seconds(),
        )

    def _end_expected(self) -> float | None:
        total = self._total_tokens
        seconds = None if total is None else self._remaining.seconds(total)
        return None if seconds is None else time.monotonic() + seconds

    def _remaining_seconds(self) -> float | None:
        end = self._expected_end
        return None if end is None else max(0.0, end - time.monotonic())

    def _write(self, action: Callable[[Session], object]) -> None:
        """Store something while the run belongs to this job. Writers take turns, so that cannot
        change before it is stored.
        """

        def transaction() -> None:
            with self._database.writing() as session:
                if store.is_run_by(session, self._run_id, self._job):
                    action(session)
                else:
                    self.is_superseded = True

        if not self.is_superseded:
            when_available(transaction, deadline=self.deadline)
            if self.is_superseded:
                _log.warning("run %s no longer belongs to job %s", self._run_id, self._job)


def _speed(first: MetricsRecord, last: MetricsRecord) -> float | None:
    """Training tokens per second between two points, evaluations and snapshots included."""
    seconds = last.time - first.time
    if seconds > 0:
        return (last.tokens - first.tokens) / seconds
    reported = last.values.get("tokens_per_second")
    return reported if reported is not None and math.isfinite(reported) else None
