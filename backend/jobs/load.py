"""How hard a run's process works, as metrics like those of training. Fed to `recorder`."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from backend.jobs.devices import gpus
from backend.jobs.machine import num_cpus

MIN_SECONDS = 1.0
"""Shortest time between two readings; the CPU's share is averaged over it."""
GIB = 2**30


class ProcessLoad:
    """Reads this process's use of the CPU and of memory, and the load of its GPU."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._process = psutil.Process()
        self._process.cpu_percent()  # begins the interval of the first reading
        self._num_cpus = num_cpus()
        self._next = now() + MIN_SECONDS

    def read(self, device: str | None) -> dict[str, float]:
        """`cpu_share` and `memory_gib`, on a GPU also `gpu_share` and `gpu_memory_gib`; empty until
        `MIN_SECONDS` after the reading before.
        """
        if self._now() < self._next:
            return {}
        self._next = self._now() + MIN_SECONDS
        values = {
            "cpu_share": self._process.cpu_percent() / 100 / self._num_cpus,
            "memory_gib": self._process.memory_info().rss / GIB,
        }
        return values | _gpu_load(device)


def _gpu_load(device: str | None) -> dict[str, float]:
    kind, _, number = (device or "").partition(":")
    found = gpus() if kind == "cuda" else []
    place = int(number) if number.isdecimal() else 0
    if place >= len(found):
        return {}
    gpu, values = found[place], dict[str, float]()
    if gpu.memory_used_bytes is not None:
        values["gpu_memory_gib"] = gpu.memory_used_bytes / GIB
    if gpu.utilization is not None:
        values["gpu_share"] = gpu.utilization
    return values
