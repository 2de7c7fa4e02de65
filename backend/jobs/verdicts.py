"""How a run ended, if its process could not report it; read by the supervisor."""

from __future__ import annotations

import signal
from typing import NamedTuple

from backend.processes import EXIT_DATABASE_REFUSED, EXIT_DISK_FULL, describe_signal
from backend.store.database import DISK_FULL
from sae_engine.errors import DiskFullError
from sae_engine.schema.runs import RunStatus


class Verdict(NamedTuple):
    """A run's end: its status, the type of its error, and one sentence."""

    status: RunStatus
    kind: str
    message: str


VANISHED = Verdict(
    "interrupted",
    "ProcessVanished",
    "The run's process disappeared without a message; it was killed, or the machine restarted.",
)


def verdict(exit_code: int | None, *, was_forced: bool) -> Verdict:
    """From the exit code of a run's process, negative if a signal ended it, None if unknown."""
    if exit_code is None:
        return VANISHED
    if exit_code == EXIT_DISK_FULL:
        return Verdict("failed", DiskFullError.__name__, DISK_FULL)
    if exit_code == EXIT_DATABASE_REFUSED:
        message = (
            "The database refused the run's process; the log says why. Resume when it is back."
        )
        return Verdict("interrupted", "DatabaseRefusedError", message)
    if exit_code >= 0:
        message = f"The run's process ended with exit code {exit_code}; the log may say why."
        return Verdict("failed", "ProcessExited", message)
    kind = describe_signal(-exit_code)
    message = f"The run's process was ended by {kind}."
    if was_forced:
        message = f"The run ignored a forced stop, so its process was ended by {kind}."
    elif -exit_code == signal.SIGKILL:
        message += " This often means that the machine ran out of memory."
    return Verdict("interrupted", kind, message)
