"""The supervisor: starts jobs for queued runs, ends jobs that do not stop, and judges runs whose
job disappeared.

One thread in the web process. Of several servers on one database only the holder of a lock
supervises; another takes over when it exits. Jobs outlive their supervisor, and an executor runs
them; what their runs' rows say counts more than what the executor sees.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import timedelta

from sqlalchemy.orm import Session

from backend import store
from backend.jobs.executor import (
    Alive,
    Ended,
    Job,
    JobCommand,
    JobState,
    NotStartedError,
    Unknown,
    job_command,
)
from backend.jobs.executors import executor_for
from backend.jobs.logs import LOG_TAIL_LINES, tail
from backend.jobs.losses import queue_again_after_loss
from backend.jobs.shortage import StartPause
from backend.jobs.silence import Report
from backend.jobs.slots import FailedStarts, Places, Slot, node_of
from backend.jobs.supervisor_lock import supervisor_lock
from backend.jobs.verdicts import verdict
from backend.settings import Settings
from backend.store.database import Database, log_failure
from backend.store.models import RunRow
from sae_engine.schema.machine import Device

CLOSING_SECONDS = 15.0
"""How long a server that ends waits for the transaction in progress."""
KILL_AFTER = timedelta(seconds=5)
NEVER_STARTED = "A run was claimed, but no process was started for it"

_log = logging.getLogger(__name__)


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
        self._executor = executor_for(settings, database, command)
        self._poll_seconds = poll_seconds
        self._patience = patience
        self._silence = silence
        self._failures: dict[str, FailedStarts] = {}
        """By machine."""
        self._starting: set[str] = set()
        """Jobs that were started and have not begun to run anything yet."""
        self._readable: set[str] = set()
        self._forced_since: dict[str, float] = {}
        self._terminated: set[str] = set()
        self._reports: dict[str, Report] = {}
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
        self._executor.close()
        self._lock.release()

    @property
    def supervises(self) -> bool:
        """Whether this process is the one that supervises its database."""
        return self._supervises

    def _loop(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                self._executor.refresh()
                if self._acquire():
                    self._judge_and_end()
                    if self._pause.is_over and self._executor.problem is None:
                        self._start_next()
                self._last_error = ""
            except Exception as error:
                if str(error) != self._last_error:  # once, not at every poll
                    self._last_error = str(error)
                    log_failure(_log, "supervising failed; trying again", error)
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
        if self._supervises and not before:
            self._reports = {}
        if self._supervises and self._deferred:
            self._deferred = False
            _log.warning("this server supervises the runs in %s now", self._settings.data_dir)
        return self._supervises

    # Judging and ending

    def _judge_and_end(self) -> None:
        with self._database.reading() as session:
            rows = store.active_runs(session)
        self._reports = {row.id: Report.next(self._reports.get(row.id), row) for row in rows}
        jobs = {job.name: job for job in map(_job_of, rows)}
        states = self._executor.look(jobs.values())
        alive: list[RunRow] = []
        unseen: list[RunRow] = []
        failed: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            job, state = _job_of(row).name, self._settled(row, states[_job_of(row).name])
            if isinstance(state, Alive):
                alive.append(row)
            elif isinstance(state, Unknown):
                unseen.append(row)
            elif not row.has_begun and (why := _why_not_begun(row, state)) is not None:
                failed.setdefault((job, why), []).append(row.id)
                self._note_failure(node_of(row.slot), why)
            elif isinstance(states[job], Unknown) and (node := node_of(row.slot)):
                self._give_up(row, node)
            else:
                self._judge(row, state.exit_code)
        begun = {_job_of(row).name for row in alive if row.has_begun}
        ended = {name for name, state in states.items() if isinstance(state, Ended)}
        for row in alive:
            if row.has_begun:
                self._failures.pop(node_of(row.slot), None)
        self._settle_starts(begun | ended, failed)
        self._end_overdue(alive, jobs)
        self._note_silence([*alive, *unseen])

    def _note_failure(self, node: str, why: str) -> None:
        earlier = self._failures.get(node)
        self._failures[node] = FailedStarts(1 + (earlier.number if earlier else 0), why)

    def _settled(self, row: RunRow, state: JobState) -> JobState:
        """A job that cannot be seen counts as gone once its run has been silent for too long."""
        if not isinstance(state, Unknown):
            return state
        patience = self._patience if row.force_stop_at else state.patience
        return Ended() if self._reports[row.id].silence() >= patience else state

    def _judge(self, row: RunRow, exit_code: int | None) -> None:
        """Record how a run ended, unless its job already did."""
        status, kind, message = verdict(exit_code, was_forced=row.force_stop_at is not None)
        log_tail = tail(self._settings.run_folder(row.id).log, LOG_TAIL_LINES)
        with self._database.writing() as session:
            judged = store.is_run_by(session, row.id, row.job) and store.fail_run(
                session, row.id, status, kind=kind, message=message, log_tail=log_tail
            )
        if judged:
            _log.warning("run %s is %s: %s", row.id, status, message)
            with suppress(OSError):
                self._settings.run_folder(row.id).remove_leftovers()

    def _give_up(self, row: RunRow, node: str) -> None:
        """Record that a run's node was lost, and queue the run again unless that is hopeless."""
        folder = self._settings.run_folder(row.id)
        with self._database.writing() as session:
            if store.is_run_by(session, row.id, row.job):
                queue_again_after_loss(session, store.get_run(session, row.id), folder, node)

    def _settle_starts(
        self, known: Set[str], failed: Mapping[tuple[str, str], Sequence[str]]
    ) -> None:
        """End the pause if a job has begun to run something; put back the runs of each that ended
        before. `known` are jobs that have begun or ended, `failed` names the runs that a job did
        not begin, and why.
        """
        if self._starting & known - {job for job, _ in failed}:
            self._pause.end()
        self._starting -= known
        for (_, why), run_ids in failed.items():
            self._put_back(run_ids, why)

    def _put_back(self, run_ids: Sequence[str], why: str) -> None:
        """Queue runs again whose job could not start, and wait before the next start."""
        self._pause.begin(why)
        with self._database.writing() as session:
            store.put_back(session, run_ids)

    def _note_silence(self, rows: Sequence[RunRow]) -> None:
        """Alert once about every run that has made no progress for too long."""
        for row in rows:
            report = self._reports[row.id]
            silence = report.standstill()
            if not report.is_noted and silence >= self._silence:
                self._reports[row.id] = report._replace(is_noted=True)
                message = (
                    f"No progress for {silence.total_seconds() / 60:.0f} minutes "
                    f"({row.phase or 'no phase'}); check its log, or stop it."
                )
                with self._database.writing() as session:
                    store.add_notice(
                        session, row.id, level="warning", kind="no_progress", message=message,
                        step=row.step,
                    )  # fmt: skip

    def _end_overdue(self, rows: Sequence[RunRow], jobs: Mapping[str, Job]) -> None:
        """Signal a job whose runs were all forced to stop but did not within `patience`."""
        unforced = {_job_of(row).name for row in rows if row.force_stop_at is None}
        forced = {_job_of(row).name for row in rows} - unforced
        now = time.monotonic()  # the wall clock may jump
        self._forced_since = {name: self._forced_since.get(name, now) for name in forced}
        for name, since in self._forced_since.items():
            overdue = timedelta(seconds=now - since) - self._patience
            if overdue > KILL_AFTER:
                self._executor.end(jobs[name], signal.SIGKILL)
            elif overdue > timedelta(0) and name not in self._terminated:
                self._terminated.add(name)
                self._executor.end(jobs[name], signal.SIGTERM)

    # Starting

    def places(self, active: Sequence[RunRow]) -> Places:
        """The slots and the active runs in them."""
        executor = self._executor
        return Places(
            executor.slots(),
            active,
            executor.held(),
            self._pause.reason,
            executor.problem,
            self._failures,
        )

    def devices(self) -> Sequence[Device]:
        """The GPUs that jobs can use."""
        return self._executor.devices()

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
            rows = store.claim(
                session, first, queue,
                slot=slot.id, device=slot.device, device_kind=slot.kind,
            )  # fmt: skip
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
        job = _job_of(rows[0]).name
        try:
            self._executor.start(job, slot, run_ids)
        except NotStartedError as error:
            if error.may_pass:
                self._put_back(run_ids, str(error))
                return
            with self._database.writing() as session:
                for run_id in run_ids:
                    store.fail_run(
                        session, run_id, "failed", kind="NotStarted", message=f"{error}.",
                        log_tail="",
                    )  # fmt: skip
            return
        self._starting.add(job)


def _job_of(row: RunRow) -> Job:
    """The job that runs an active run; earlier versions started runs without a job's name."""
    return Job(row.job or row.id, row.slot, row.process)


def _why_not_begun(row: RunRow, state: Ended) -> str | None:
    """Why a job ended before it began to run anything; None if its end is a run's own."""
    if state.exit_code is not None and state.exit_code > 0:
        why = f"The run's process ended with exit code {state.exit_code} at once"
        return f"{why} ({state.last_line.rstrip('.')})" if state.last_line else why
    return NEVER_STARTED if row.process is None and state.exit_code is None else None
