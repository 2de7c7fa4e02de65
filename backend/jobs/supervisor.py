"""The supervisor: starts jobs for queued runs, ends those that do not stop, judges those that
vanished.

One thread in the web process. Of several servers on one data folder only the holder of the lock
file supervises; the others take over when it goes. Jobs are detached and survive it: a supervisor
that starts finds them again by process number and start time.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import IO, NamedTuple

import psutil

from backend import store
from backend.jobs.logs import tail
from backend.jobs.recorder import LOG_TAIL_LINES
from backend.jobs.slots import Places, Slot, environment_of, find_slots
from backend.processes import EXIT_DISK_FULL, describe_signal, is_alive, send_signal, start_of
from backend.settings import Settings
from backend.store.database import DISK_FULL, Database
from backend.store.models import RunRow
from sae_engine.errors import DiskFullError

START_GRACE = timedelta(seconds=30)
"""How long a claimed run may be without a known process: its supervisor may have died while
starting it.
"""
KILL_AFTER = timedelta(seconds=5)

_log = logging.getLogger(__name__)


JobCommand = Callable[[Sequence[str]], list[str]]
"""From the ids of runs to the command line that carries them out in one process."""


def job_command(run_ids: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "backend.jobs.worker", *run_ids]


class _Job(NamedTuple):
    """A process that this supervisor started; its slot is taken until it is gone, whatever its
    rows say.
    """

    process: subprocess.Popen[bytes]
    slot: str
    run_ids: Sequence[str]


class _Heard(NamedTuple):
    """What a run told last, and since when on our own clock there has been nothing newer."""

    reported_at: datetime | None
    since: float
    is_noted: bool = False


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
    ) -> None:
        """`patience` is how long a job may take to end after a forced stop; a `silence` so long
        is told.
        """
        self._settings = settings
        self._database = database
        self._command = command
        self._slots = find_slots(settings)
        self._poll_seconds = poll_seconds
        self._patience = patience
        self._jobs: list[_Job] = []
        self._silence = silence
        self._forced_since: dict[int, float] = {}
        self._terminated: set[int] = set()
        self._heard: dict[str, _Heard] = {}
        self._trouble = ""
        self._lock: IO[str] | None = None
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
        """Stop supervising; the jobs go on."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        for job in self._jobs:
            if job.process.poll() is None:
                job.process.returncode = (
                    0  # It lives on without us: no warning when this object goes.
                )
        if self._lock is not None:
            self._lock.close()

    @property
    def supervises(self) -> bool:
        """Whether this process is the one that supervises its data folder."""
        return self._lock is not None

    def _loop(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                if self._acquire():
                    self._judge_and_end()
                    self._start_next()
                self._trouble = ""
            except Exception as error:
                if str(error) != self._trouble:  # once, not at every poll on a disk that is full
                    self._trouble = str(error)
                    _log.exception("supervising failed; trying again")
            self._wake.wait(self._poll_seconds)

    def _acquire(self) -> bool:
        if self._lock is None:
            file = self._settings.supervisor_lock.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                if not self._deferred:
                    self._deferred = True
                    _log.warning(
                        "another server supervises the runs in %s; this one answers, starts none, "
                        "and takes over when that one ends",
                        self._settings.data_dir,
                    )
                return False
            if self._deferred:
                _log.warning("supervises the runs in %s now", self._settings.data_dir)
            self._lock = file
        return True

    # Judging and ending

    def _judge_and_end(self) -> None:
        codes = [job.process.poll() for job in self._jobs]
        exits: dict[tuple[str, str | None], int | None] = {
            (run_id, job.slot): code
            for job, code in zip(self._jobs, codes, strict=True)
            for run_id in job.run_ids
        }
        with self._database.reading() as session:
            rows = store.active_runs(session)
        working: list[RunRow] = []
        for row in rows:
            key = (row.id, row.slot)
            exit_code = exits.get(key)
            if exit_code is not None:
                self._judge(row, exit_code)
            elif key in exits:
                working.append(row)
            elif row.pid is None or row.pid_created is None:
                if row.started_at and abs(store.now() - row.started_at) > START_GRACE:
                    self._judge(row, None)
            elif is_alive(row.pid, row.pid_created):
                working.append(row)
            else:
                self._judge(row, None)
        self._end_overdue(working)
        self._note_silence(working)
        self._jobs = [job for job, code in zip(self._jobs, codes, strict=True) if code is None]

    def _judge(self, row: RunRow, exit_code: int | None) -> None:
        """Write down the end of a run whose process could not; one that did is left as it is."""
        log_tail = tail(self._settings.run_folder(row.id).log, LOG_TAIL_LINES)
        if exit_code is None:
            status, kind = "interrupted", "ProcessVanished"
            message = (
                "The run's process vanished without a word; it was killed or the machine restarted."
            )
        elif exit_code < 0:
            status, kind = "interrupted", describe_signal(-exit_code)
            message = f"The run's process was ended by {kind}."
            if row.force_stop_at is not None:
                message = f"The run did not end when it was forced to stop and was ended by {kind}."
            elif -exit_code == signal.SIGKILL:
                message += " Often that means the machine ran out of memory."
        elif exit_code == EXIT_DISK_FULL:
            status, kind, message = "failed", DiskFullError.__name__, DISK_FULL
        else:
            status, kind = "failed", "ProcessExited"
            message = f"The run's process ended with exit code {exit_code}; the log may say why."
        with self._database.writing() as session:
            judged = store.fail_run(
                session, row.id, status, kind=kind, message=message, log_tail=log_tail
            )
        if judged:
            _log.warning("run %s is %s: %s", row.id, status, message)

    def _note_silence(self, rows: Sequence[RunRow]) -> None:
        """Leave an alert with every run that has told nothing for long; once in each silence.

        Timed by a clock that neither jumps nor runs while the machine sleeps.
        """
        at = time.monotonic()
        heard = self._heard
        self._heard = {
            row.id: heard[row.id]
            if row.id in heard and heard[row.id].reported_at == row.reported_at
            else _Heard(row.reported_at, at)
            for row in rows
        }
        for row in rows:
            known = self._heard[row.id]
            silence = timedelta(seconds=at - known.since)
            if known.is_noted or silence < self._silence:
                continue
            self._heard[row.id] = known._replace(is_noted=True)
            message = (
                f"It has told nothing for {silence.total_seconds() / 60:.0f} minutes "
                f"({row.phase or 'no phase'}); see its log, or stop it."
            )
            with self._database.writing() as session:
                store.add_notice(
                    session, row.id, level="warning", kind="no_progress", message=message,
                    step=row.step,
                )  # fmt: skip

    def _end_overdue(self, rows: Sequence[RunRow]) -> None:
        """Signal a job whose runs were all forced to stop and did not within our patience."""
        waiting = {row.pid for row in rows if row.force_stop_at is None}
        forced = {row.pid for row in rows if row.pid is not None} - waiting
        now = time.monotonic()  # the clock may jump
        self._forced_since = {pid: self._forced_since.get(pid, now) for pid in forced}
        for pid, since in self._forced_since.items():
            overdue = timedelta(seconds=now - since) - self._patience
            if overdue > KILL_AFTER:
                send_signal(pid, signal.SIGKILL)
            elif overdue > timedelta(0) and pid not in self._terminated:
                self._terminated.add(pid)
                send_signal(pid, signal.SIGTERM)

    # Starting

    def places(self, active: Sequence[RunRow]) -> Places:
        """The slots, with the runs that are being worked on in them."""
        return Places(self._slots, active, {job.slot for job in list(self._jobs)})

    def _start_next(self) -> None:
        while (started := self._claim()) is not None:
            self._start(*started)

    def _claim(self) -> tuple[Slot, Sequence[RunRow]] | None:
        """Take the next run that a slot is free for, with those that share its pass."""
        with self._database.reading() as session:
            if not store.count_by_status(session).get("queued"):
                return None
        with self._database.writing() as session:
            places = self.places(store.active_runs(session))
            queue = store.queued_runs(session)
            chosen = places.next_of(queue)
            if chosen is None:
                return None
            first, slot = chosen
            rows = store.claim(session, first, queue, slot=slot.id, device=slot.device)
        return (slot, rows) if rows else None

    def _start(self, slot: Slot, rows: Sequence[RunRow]) -> None:
        folder = self._settings.run_folder(rows[0].id)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.log.open("ab") as log:
                child = subprocess.Popen(
                    self._command([row.id for row in rows]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment_of(slot, self._settings.environment()),
                    start_new_session=True,
                )
        except OSError as error:
            message = f"The run's process could not be started: {error}."
            with self._database.writing() as session:
                for row in rows:
                    store.fail_run(
                        session, row.id, "failed", kind="NotStarted", message=message, log_tail=""
                    )
            return
        self._jobs.append(_Job(child, slot.id, [row.id for row in rows]))
        try:
            created = start_of(child.pid)
        except psutil.NoSuchProcess:
            return
        with self._database.writing() as session:
            for row in rows:
                store.set_process(session, row.id, pid=child.pid, created=created)
