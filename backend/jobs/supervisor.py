"""The supervisor: starts jobs for queued runs, ends jobs that do not stop, and judges runs whose
job disappeared.

One thread in the web process. Of several servers on one database only the holder of a lock
supervises; another takes over when it exits. Jobs are detached and outlive their supervisor;
the next one recognizes them by process number and start.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple

import psutil
from sqlalchemy.orm import Session

from backend import store
from backend.jobs.executor import Job, JobCommand, LocalExecutor, job_command
from backend.jobs.logs import LOG_TAIL_LINES, tail
from backend.jobs.shortage import SHORTAGES, StartPause
from backend.jobs.slots import Places, Slot, find_slots
from backend.jobs.supervisor_lock import supervisor_lock
from backend.jobs.verdicts import verdict
from backend.processes import is_elsewhere, start_of
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow

START_GRACE = timedelta(seconds=30)
"""How long a claimed run may lack a process: its supervisor may have died while starting it."""
FOREIGN_SILENCE = timedelta(minutes=10)
"""A run on another machine is given up after this long without a report."""
CLOSING_SECONDS = 15.0
"""How long a server that ends waits for the transaction in progress."""
KILL_AFTER = timedelta(seconds=5)
NEVER_STARTED = "A run was claimed, but no process was started for it"

_log = logging.getLogger(__name__)


class _Report(NamedTuple):
    """A run's latest report, and since when (`time.monotonic`) it has been the latest."""

    reported_at: datetime | None
    reported: float
    progress: tuple[object, ...]
    """Phase, step and tokens; a run that is only alive reports the same ones again."""
    progressed: float
    is_noted: bool = False

    @classmethod
    def next(cls, earlier: _Report | None, row: RunRow) -> _Report:
        at = time.monotonic()
        progress = (row.phase, row.step, row.tokens)
        if earlier is None or earlier.progress != progress:
            return cls(row.reported_at, at, progress, at)
        if earlier.reported_at != row.reported_at:
            return earlier._replace(reported_at=row.reported_at, reported=at)
        return earlier

    def silence(self, row: RunRow) -> timedelta:
        """How long the run has not reported anything, by a clock that neither jumps nor runs while
        the machine sleeps.
        """
        if row.reported_at != self.reported_at:
            return timedelta(0)
        return timedelta(seconds=time.monotonic() - self.reported)

    def standstill(self) -> timedelta:
        """How long the run has not made any progress, by the same clock."""
        return timedelta(seconds=time.monotonic() - self.progressed)


class Supervisor:
    """Owns the thread; `start` and `close` it once."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        command: JobCommand = job_command,
        poll_seconds: float = 0.5,
        patience: timedelta = timedelta(seconds=30),
        silence: timedelta = timedelta(minutes=15),
        pause: StartPause | None = None,
    ) -> None:
        """A job gets `patience` to end after a forced stop; a run without any progress for the
        length of a `silence` gets an alert.
        """
        self._settings = settings
        self._database = database
        self._executor = LocalExecutor(settings, command)
        self._slots = find_slots(settings)
        self._poll_seconds = poll_seconds
        self._patience = patience
        self._silence = silence
        self._jobs: list[Job] = []
        self._starting: set[int] = set()
        """Processes that were started and have not begun to run anything yet."""
        self._readable: set[str] = set()
        self._forced_since: dict[int, float] = {}
        self._terminated: set[int] = set()
        self._reports: dict[str, _Report] = {}
        self._last_error = ""
        self._lock = supervisor_lock(settings, database)
        self._supervises = False
        self._pause = pause or StartPause()
        self._deferred = False
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now instead of at the next poll."""
        self._wake.set()

    def close(self) -> None:
        """Stop supervising; the jobs continue."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSING_SECONDS)
        for job in self._jobs:
            job.detach()
        self._lock.release()

    @property
    def supervises(self) -> bool:
        """Whether this process is the one that supervises its database."""
        return self._supervises

    def _loop(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                if self._acquire():
                    self._judge_and_end()
                    if self._pause.is_over:
                        self._start_next()
                self._last_error = ""
            except Exception as error:
                if str(error) != self._last_error:  # once, not at every poll
                    self._last_error = str(error)
                    _log.exception("supervising failed; trying again")
            self._wake.wait(self._poll_seconds)

    def _acquire(self) -> bool:
        self._supervises, before = False, self._supervises
        self._supervises = self._lock.acquire()
        if not self._supervises and not self._deferred:
            self._deferred = True
            _log.warning(
                "another server supervises the runs in %s; this one answers requests, starts "
                "no runs, and takes over when the other ends",
                self._settings.data_dir,
            )
        if self._supervises and not before and self._deferred:
            self._deferred = False
            _log.warning("this server supervises the runs in %s now", self._settings.data_dir)
        return self._supervises

    # Judging and ending

    def _judge_and_end(self) -> None:
        codes = [job.poll() for job in self._jobs]
        exits: dict[tuple[str, int | None], tuple[int, int | None]] = {}
        for job, code in zip(self._jobs, codes, strict=True):
            for run_id in job.run_ids:
                exits[run_id, job.pid] = exits[run_id, None] = job.pid, code
        with self._database.reading() as session:
            rows = store.active_runs(session)
        working: list[RunRow] = []
        elsewhere: list[RunRow] = []
        failed: dict[tuple[int | None, str], list[str]] = {}
        for row in rows:
            pid, code = exits.get((row.id, row.pid), (None, None))
            if pid is not None:
                is_working = code is None
            elif row.process is None:
                if row.started_at and abs(store.now() - row.started_at) > START_GRACE:
                    failed.setdefault((None, NEVER_STARTED), []).append(row.id)
                continue
            else:
                is_working = self._executor.is_alive(*row.process)
            if is_working:
                working.append(row)
            elif self._may_work_elsewhere(row):
                elsewhere.append(row)
            elif code is not None and code > 0 and not row.has_begun:
                why = f"The run's process ended with exit code {code} at once"
                failed.setdefault((pid, why), []).append(row.id)
            else:
                self._judge(row, code)
        begun = {row.pid for row in working if row.has_begun}
        ended = {job.pid for job, code in zip(self._jobs, codes, strict=True) if code is not None}
        self._settle_starts(begun | ended, failed)
        self._end_overdue(working)
        self._note_silence([*working, *elsewhere])
        self._jobs = [job for job, code in zip(self._jobs, codes, strict=True) if code is None]

    def _may_work_elsewhere(self, row: RunRow) -> bool:
        """Whether a run may have a process on another machine: its reports can be seen from here,
        its process cannot.
        """
        created = row.pid_created
        if self._database.is_sqlite or created is None or not is_elsewhere(created):
            return False
        report = self._reports.get(row.id)
        patience = self._patience if row.force_stop_at else FOREIGN_SILENCE
        return report is None or report.silence(row) < patience

    def _judge(self, row: RunRow, exit_code: int | None) -> None:
        """Record how a run ended, unless its job already did."""
        status, kind, message = verdict(exit_code, was_forced=row.force_stop_at is not None)
        log_tail = tail(self._settings.run_folder(row.id).log, LOG_TAIL_LINES)
        with self._database.writing() as session:
            judged = (
                row.process is None or store.is_run_by(session, row.id, row.process)
            ) and store.fail_run(
                session, row.id, status, kind=kind, message=message, log_tail=log_tail
            )
        if judged:
            _log.warning("run %s is %s: %s", row.id, status, message)
            with suppress(OSError):
                self._settings.run_folder(row.id).remove_leftovers()

    def _settle_starts(
        self, known: Set[int | None], failed: Mapping[tuple[int | None, str], Sequence[str]]
    ) -> None:
        """End the pause if a process has begun to run something; put back the runs of each that
        ended before. `known` are processes that have begun or ended, `failed` names the runs that
        a process did not begin, and why.
        """
        if self._starting & known - {pid for pid, _ in failed}:
            self._pause.end()
        self._starting -= known
        for (_, why), run_ids in failed.items():
            self._put_back(run_ids, why)

    def _put_back(self, run_ids: Sequence[str], why: str) -> None:
        """Queue runs again whose process could not start, and wait before the next start."""
        self._pause.begin(why)
        with self._database.writing() as session:
            store.put_back(session, run_ids)

    def _note_silence(self, rows: Sequence[RunRow]) -> None:
        """Alert once about every run that has made no progress for too long."""
        earlier, self._reports = self._reports, {}
        for row in rows:
            report = _Report.next(earlier.get(row.id), row)
            silence = report.standstill()
            if not report.is_noted and silence >= self._silence:
                report = report._replace(is_noted=True)
                message = (
                    f"No progress for {silence.total_seconds() / 60:.0f} minutes "
                    f"({row.phase or 'no phase'}); check its log, or stop it."
                )
                with self._database.writing() as session:
                    store.add_notice(
                        session, row.id, level="warning", kind="no_progress", message=message,
                        step=row.step,
                    )  # fmt: skip
            self._reports[row.id] = report

    def _end_overdue(self, rows: Sequence[RunRow]) -> None:
        """Signal a job whose runs were all forced to stop but did not within `patience`."""
        unforced = {row.pid for row in rows if row.force_stop_at is None}
        forced = {row.pid for row in rows if row.pid is not None} - unforced
        now = time.monotonic()  # the wall clock may jump
        self._forced_since = {pid: self._forced_since.get(pid, now) for pid in forced}
        for pid, since in self._forced_since.items():
            overdue = timedelta(seconds=now - since) - self._patience
            if overdue > KILL_AFTER:
                self._executor.signal(pid, signal.SIGKILL)
            elif overdue > timedelta(0) and pid not in self._terminated:
                self._terminated.add(pid)
                self._executor.signal(pid, signal.SIGTERM)

    # Starting

    def places(self, active: Sequence[RunRow]) -> Places:
        """The slots and the active runs in them."""
        held = {job.slot_id for job in list(self._jobs)}
        return Places(self._slots, active, held, self._pause.reason)

    def _start_next(self) -> None:
        while self._pause.is_over and (claimed := self._claim()) is not None:
            self._start(*claimed)

    def _claim(self) -> tuple[Slot, Sequence[RunRow]] | None:
        """Claim the next run with a free slot, and the runs that share its pass."""
        with self._database.reading() as session:
            if not store.count_by_status(session).get("queued"):
                return None
        with self._database.writing() as session:
            places = self.places(store.active_runs(session))
            queue = self._readable_queue(session)
            chosen = places.next_of(queue)
            if chosen is None:
                return None
            first, slot = chosen
            rows = store.claim(session, first, queue, slot=slot.id, device=slot.device)
        return (slot, rows) if rows else None

    def _readable_queue(self, session: Session) -> Sequence[RunRow]:
        """The queue; runs whose stored configuration is invalid fail instead of blocking it."""
        queue: list[RunRow] = []
        for row in store.queued_runs(session):
            if row.id in self._readable or not store.fail_unreadable(session, row):
                queue.append(row)
        self._readable = {row.id for row in queue}  # validated once, not at every poll
        return queue

    def _start(self, slot: Slot, rows: Sequence[RunRow]) -> None:
        run_ids = [row.id for row in rows]
        try:
            job = self._executor.start(run_ids, slot)
        except OSError as error:
            message = f"The run's process could not be started: {error}"
            if error.errno in SHORTAGES:
                self._put_back(run_ids, message)
                return
            message += "."
            with self._database.writing() as session:
                for row in rows:
                    store.fail_run(
                        session, row.id, "failed", kind="NotStarted", message=message, log_tail=""
                    )
            return
        self._starting.add(job.pid)
        self._jobs.append(job)
        try:
            created = start_of(job.pid)
        except psutil.NoSuchProcess:
            return
        with self._database.writing() as session:
            for row in rows:
                store.set_process(session, row.id, pid=job.pid, created=created)
