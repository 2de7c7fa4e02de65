"""Whether the process that works on a run is still there, and what its end means."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import psutil

SAME_START_SECONDS = 2.0
"""Two readings of one process's start may differ by clock adjustments."""


def is_alive(pid: int, created: float) -> bool:
    """Whether the process with this number and start lives; a later one with its number is
    another.
    """
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) > SAME_START_SECONDS:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a job with its children; a process that does not lead a group gets the signal
    alone.
    """
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def describe_signal(number: int) -> str:
    """Name of a signal, such as `SIGKILL`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
