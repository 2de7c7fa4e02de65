"""The seam between the supervisor and what runs jobs: this machine, or a cluster of machines.

The supervisor asks an `Executor` and knows none of them by name. A job is named by the text in its
runs' rows, so that any server can ask about a job that another one started.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple, Protocol

from backend.jobs.slots import Slot
from backend.processes import ProcessId
from sae_engine.schema.machine import Device

FOREIGN_SILENCE = timedelta(minutes=10)
"""A run whose job cannot be seen is given up after this long without a report."""

JobCommand = Callable[[str], list[str]]
"""The command line of a job's process, given the job's name."""


def job_command(job: str) -> list[str]:
    return [sys.executable, "-m", "backend.jobs.worker", job]


class Job(NamedTuple):
    """A job as the rows of its runs describe it."""

    name: str
    slot: str | None
    """Id of its slot; None for runs in a terminal."""
    process: ProcessId | None
    """The process that took its runs; None before."""


class Alive(NamedTuple):
    """The job runs, or is about to."""


class Ended(NamedTuple):
    """The job's process is gone for certain."""

    exit_code: int | None = None
    """Negative if a signal ended it, None if unknown."""
    last_line: str = ""
    """The last line that it printed, if it did not print into the log of its run."""


class Unknown(NamedTuple):
    """The job cannot be seen from here, so it counts as gone only after it has reported nothing for
    as long as `patience`.
    """

    patience: timedelta


JobState = Alive | Ended | Unknown


class NotStartedError(Exception):
    """A job could not be started; the text says why."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        """`may_pass` says that the reason lies in the machine, not in the runs, and may be gone
        later.
        """
        super().__init__(message)
        self.may_pass = may_pass


class Executor(Protocol):
    """Runs jobs, which outlive the server that started them."""

    @property
    def problem(self) -> str | None:
        """Why no job can be started at present, as one sentence."""
        ...

    def refresh(self) -> None:
        """Look for new machines and for those that are gone; the supervisor's thread waits."""
        ...

    def devices(self) -> Sequence[Device]:
        """The current state of the GPUs."""
        ...

    def slots(self) -> Sequence[Slot]:
        """The places where jobs can run."""
        ...

    def held(self) -> Collection[str]:
        """Ids of slots whose job has not exited, whatever the rows of its runs say."""
        ...

    def start(self, job: str, slot: Slot, run_ids: Sequence[str]) -> None:
        """Start a job for some runs in a slot; raises `NotStartedError`."""
        ...

    def look(self, jobs: Collection[Job]) -> Mapping[str, JobState]:
        """The state of each of all jobs with active runs, by name."""
        ...

    def end(self, job: Job, number: signal.Signals) -> None:
        """Signal a job, with its child processes."""
        ...

    def close(self) -> None:
        """Forget the jobs, which continue."""
        ...
