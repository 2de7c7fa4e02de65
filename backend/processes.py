"""Whether the process that works on a run is still there, what its end means, and how it leaves
room for others.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

NICENESS = 10
EXIT_DISK_FULL = os.EX_IOERR
"""Exit code of a job that has no room to write down how its runs ended."""
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


def step_back() -> None:
    """Leave the processor to the pages when they want it."""
    os.nice(max(0, NICENESS - os.nice(0)))
    # A detached process is a session of its own, and where Linux groups processes by session for
    # scheduling, niceness counts only inside the group: the group needs its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))
