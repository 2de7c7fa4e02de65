"""Runs jobs as detached processes of this machine. Used by the supervisor as its `Executor`.

A job started by an earlier server is known only by its process number and start.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from backend.jobs.devices import gpus
from backend.jobs.executor import (
    FOREIGN_SILENCE,
    Alive,
    Ended,
    Job,
    JobCommand,
    JobState,
    NotStartedError,
    Unknown,
)
from backend.jobs.shortage import SHORTAGES
from backend.jobs.slots import Slot, environment_of, find_slots
from backend.processes import is_alive, is_elsewhere, send_signal
from backend.settings import Settings
from sae_engine.schema.machine import Device

START_GRACE = timedelta(seconds=30)
"""How long a claimed run may lack a process: its supervisor may have died while starting it."""


class _Started(NamedTuple):
    """A process started by this server; it occupies its slot until it is gone."""

    process: subprocess.Popen[bytes]
    slot_id: str

    def state(self) -> Alive | Ended:
        code = self.process.poll()
        if code is None:
            return Alive()
        return Ended(code if code <= 128 else 128 - code)


class LocalExecutor:
    """Runs jobs on this machine."""

    def __init__(self, settings: Settings, command: JobCommand, *, is_shared: bool) -> None:
        """`is_shared` says that processes of other machines may use the database too."""
        self._settings = settings
        self._command = command
        self._is_shared = is_shared
        self._slots = find_slots(settings)
        self._started: dict[str, _Started] = {}

    @property
    def problem(self) -> str | None:
        return None

    def refresh(self) -> None:
        pass

    def devices(self) -> Sequence[Device]:
        return gpus()

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def held(self) -> Collection[str]:
        started = list(self._started.values())  # requests ask while the supervisor starts jobs
        return {each.slot_id for each in started if each.process.returncode is None}

    def start(self, job: str, slot: Slot, run_ids: Sequence[str]) -> None:
        """Start a process that logs into the folder of the job's first run."""
        folder = self._settings.run_folder(run_ids[0])
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.log.open("ab") as log:
                process = subprocess.Popen(
                    self._command(job),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment_of(slot, self._settings.environment()),
                    start_new_session=True,
                )
        except OSError as error:
            message = f"The run's process could not be started: {error}"
            raise NotStartedError(message, may_pass=error.errno in SHORTAGES) from error
        self._started[job] = _Started(process, slot.id)

    def look(self, jobs: Collection[Job]) -> Mapping[str, JobState]:
        states = {job.name: self._state(job) for job in jobs}
        for name, each in list(self._started.items()):
            if name not in states and each.process.poll() is not None:
                del self._started[name]
        return states

    def _state(self, job: Job) -> JobState:
        if (started := self._started.get(job.name)) is not None:
            return started.state()
        if job.process is None:
            return Unknown(START_GRACE)
        if is_alive(*job.process):
            return Alive()
        if self._is_shared and is_elsewhere(job.process.created):
            return Unknown(FOREIGN_SILENCE)
        return Ended()

    def end(self, job: Job, number: signal.Signals) -> None:
        started = self._started.get(job.name)
        pid = started.process.pid if started else job.process and job.process.pid
        if pid is not None:
            send_signal(pid, number)

    def close(self) -> None:
        for each in self._started.values():
            if each.process.poll() is None:
                each.process.returncode = 0  # or Popen warns when it is garbage-collected
