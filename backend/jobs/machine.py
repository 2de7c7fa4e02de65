"""The memory and processors that this process may use: the machine's, or less in a container."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
LEAST_CPU_SECONDS = 0.2
"""Processor time, idle or not, below which a share says nothing."""


class Memory(NamedTuple):
    """In bytes."""

    total: int
    available: int


def memory(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> Memory:
    """The smallest total and the smallest free memory among the machine and the control groups."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for folder in _folders(cgroups, own, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            total = min(total, limit)
            available = min(available, max(0, limit - used + _reclaimable(folder)))
    return Memory(total, available)


def num_cpus(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Processors that this process may use at a time, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else math.inf
    counts = [psutil.cpu_count() or 1, allowed]
    for folder in _folders(cgroups, own, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            counts.append(math.ceil(quota / period))
    return max(1, int(min(counts)))


class ProcessorTimes(NamedTuple):
    """Seconds since the machine started, over all processors."""

    busy: float
    total: float


def processor_times() -> ProcessorTimes:
    times = psutil.cpu_times()
    # Linux counts the time of virtual machines twice.
    total = sum(times) - sum(getattr(times, name, 0.0) for name in ("guest", "guest_nice"))
    return ProcessorTimes(total - times.idle - getattr(times, "iowait", 0.0), total)


class ProcessorMeter:
    """The share of the machine's processors in use since the last reading, whichever thread took
    it; `psutil.cpu_percent` keeps one reading per thread, and returns 0 to a new one.
    """

    def __init__(self, times: Callable[[], ProcessorTimes] = processor_times) -> None:
        self._times = times
        self._lock = Lock()
        self._last = times()
        self._share = 0.0

    def read(self) -> float:
        """From 0 to 1; the last share if hardly any time has passed since."""
        with self._lock:
            now, last = self._times(), self._last
            if now.total - last.total >= LEAST_CPU_SECONDS:
                self._share = (now.busy - last.busy) / (now.total - last.total)
                self._last = now
            return min(1.0, max(0.0, self._share))


def _folders(cgroups: Path, own: Path, controller: str) -> list[Path]:
    """This process's control group and those that contain it, in either version of the system."""
    folders: list[Path] = []
    with suppress(OSError):
        for line in own.read_text("utf-8").splitlines():
            _, names, path = line.split(":", 2)
            root = cgroups if not names else cgroups / controller
            if not names or controller in names.split(","):
                folder = root / path.lstrip("/")
                folders += [each for each in (folder, *folder.parents) if each.is_relative_to(root)]
    return folders


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first file that exists; None without one, or without a limit."""
    for name in names:
        with suppress(OSError, ValueError):
            return int((folder / name).read_text("ascii"))
    return None


def _reclaimable(folder: Path) -> int:
    """Cached files, which count as used until something else needs the memory."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text("ascii").splitlines():
            name, _, size = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(size)
    return 0


def _quota(folder: Path) -> tuple[int, int]:
    """Microseconds of processor time per period; not positive without a limit."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        return int(quota), int(period)
    quota, period = (_number(folder, f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota or -1, period or -1
