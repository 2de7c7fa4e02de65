"""Processes: identifying them across restarts and clock changes, signals, priority, limits."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

EXIT_DISK_FULL = os.EX_IOERR
"""Exit code of a job that had no disk space to record how its runs ended."""
EXIT_DATABASE_REFUSED = os.EX_UNAVAILABLE
"""Exit code of a job whose database would not let it in."""
MAX_DESCRIPTORS = 65_536
CLOCK_TOLERANCE_SECONDS = 2.0
"""Clock adjustments may change a process's start time between two readings."""
PID_NAMESPACE = Path("/proc/self/ns/pid")
_TICKS_PER_BOOT = 2.0**33
"""More clock ticks than any uptime: 2.7 years."""


def raise_descriptor_limit() -> int:
    """Let this process open as many files as its hard limit allows; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            return allowed
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


@contextmanager
def on_exit_signal(action: Callable[[], None]) -> Generator[None]:
    """Also call `action` from the running event loop when the process is asked to exit.

    A web server waits for open responses before it tells its application; one that never ends by
    itself has to know earlier. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(action)
        handler = handlers[signal.Signals(number)]
        assert callable(handler)
        handler(number, frame)

    chained = [number for number, handler in handlers.items() if callable(handler)]
    for number in chained:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in chained:
            signal.signal(number, handlers[number])


class ProcessId(NamedTuple):
    """Identifies a process, across machines too."""

    pid: int
    created: float
    """Its `start_of`."""


def this_process() -> ProcessId:
    return ProcessId(os.getpid(), start_of(os.getpid()))


def start_of(pid: int) -> float:
    """A number that distinguishes a process from a later one with the same process number.

    On Linux it combines the boot, the PID namespace (containers on a machine share the boot and
    number their processes independently) and the clock tick since the boot at which the process
    started, and so does not depend on the wall clock; elsewhere it is seconds since the epoch.
    Raises `psutil.NoSuchProcess`.
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
    return (1 + (boot.int + _pid_namespace()) % 2**19) * _TICKS_PER_BOOT + ticks


def _pid_namespace() -> int:
    """The number of this process's PID namespace on this machine; 0 where there are none."""
    try:
        return PID_NAMESPACE.stat().st_ino
    except OSError:
        return 0


def start_tolerance(start: float) -> float:
    """By how much two readings of one process's `start_of` may differ."""
    return CLOCK_TOLERANCE_SECONDS if start < _TICKS_PER_BOOT else 0


def is_alive(pid: int, created: float) -> bool:
    """Whether the process with this number, whose `start_of` was `created`, is still running."""
    try:
        start = start_of(pid)
        same = abs(start - created) <= start_tolerance(start)
        return same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_elsewhere(created: float) -> bool:
    """Whether a process with this `start_of` belongs to another machine or container, or to this
    one before it restarted.
    """
    boots = [number // _TICKS_PER_BOOT for number in (created, start_of(os.getpid()))]
    return boots[0] != boots[1]


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process, together with its children if it leads a process group."""
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def describe_signal(number: int) -> str:
    """The name of a signal, such as `SIGKILL`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def lower_priority(niceness: int) -> None:
    """Raise this process's niceness to `niceness` (0 to 19), in favor of the pages."""
    os.nice(max(0, niceness - os.nice(0)))
    # Where Linux schedules processes by session (autogroup), niceness counts only within a session.
    # A detached process is a session of its own, so the session needs the niceness too.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
