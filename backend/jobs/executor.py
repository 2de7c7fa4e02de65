"""Starts and signals jobs, as processes of this machine: the only module that knows how they run.

Used by the supervisor. Jobs are detached and outlive the server; one started by an earlier server
is known only by its process number and start.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from backend.jobs.slots import Slot, environment_of
from backend.processes import is_alive, send_signal
from backend.settings import Settings

JobCommand = Callable[[Sequence[str]], list[str]]
"""The command line of a process that trains the runs with some ids."""


def job_command(run_ids: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "backend.jobs.worker", *run_ids]


class Job:
    """A process started by this server; it occupies its slot until it is gone."""

    def __init__(
        self, process: subprocess.Popen[bytes], slot_id: str, run_ids: Sequence[str]
    ) -> None:
        self._process = process
        self.pid = process.pid
        self.slot_id = slot_id
        self.run_ids = run_ids

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        code = self._process.poll()
        return code if code is None or code <= 128 else 128 - code

    def detach(self) -> None:
        """Forget the process, which continues."""
        if self._process.poll() is None:
            self._process.returncode = 0  # or Popen warns when it is garbage-collected


class LocalExecutor:
    """Runs jobs on this machine."""

    def __init__(self, settings: Settings, command: JobCommand) -> None:
        self._settings = settings
        self._command = command

    def start(self, run_ids: Sequence[str], slot: Slot) -> Job:
        """Start a job that logs into the folder of its first run; raises `OSError`."""
        folder = self._settings.run_folder(run_ids[0])
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.log.open("ab") as log:
            process = subprocess.Popen(
                self._command(run_ids),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment_of(slot, self._settings.environment()),
                start_new_session=True,
            )
        return Job(process, slot.id, run_ids)

    def is_alive(self, pid: int, created: float) -> bool:
        """Whether a job started by any server is still running."""
        return is_alive(pid, created)

    def signal(self, pid: int, number: signal.Signals) -> None:
        send_signal(pid, number)
