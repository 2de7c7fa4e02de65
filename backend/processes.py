"""Whether the process that works on a run is still there, what its end means, and how it leaves
room for others.
"""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

EXIT_DISK_FULL = os.EX_IOERR
"""Exit code of a job that has no room to write down how its runs ended."""
SAME_START_SECONDS = 2.0
"""Two readings of one process's start by the clock may differ by its adjustments."""
_TICKS_PER_BOOT = 2.0**33
"""More clock ticks than a machine stays up: two and a half years."""


def start_of(pid: int) -> float:
    """What tells a process from a later one with its number, whatever the clock does meanwhile.

    On Linux, which boot it belongs to and the tick of that boot in which it began; elsewhere
    seconds since the epoch. Raises `psutil.NoSuchProcess`.
    """
    try:
        boot = uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    except FileNotFoundError:
        return psutil.Process(pid).create_time()
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    ticks = int(fields[19])  # "starttime" of proc(5), counted from what follows the name
    return (1 + boot.int % 2**19) * _TICKS_PER_BOOT + ticks


def is_alive(pid: int, created: float) -> bool:
    """Whether the process with this number and `start_of` lives; a later one with its number is
    another.
    """
    try:
        if created < _TICKS_PER_BOOT:  # by the clock, as earlier versions wrote it
            same = abs(psutil.Process(pid).create_time() - created) <= SAME_START_SECONDS
        else:
            same = start_of(pid) == created
        return same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
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


def step_back(niceness: int) -> None:
    """Leave the processor to the pages when they want it, by so much (0 to 19)."""
    os.nice(max(0, niceness - os.nice(0)))
    # A detached process is a session of its own, and where Linux groups processes by session for
    # scheduling, niceness counts only inside the group: the group needs its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
