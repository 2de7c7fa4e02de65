"""Throughput of one pass of the language model, and what its time is spent on.

Driven by `loop` and `run`, which time their work with it; read by `run` at logged steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch

WINDOW_SECONDS = 30.0
MAX_UNREAD = 10_000
"""Timed sections kept before the device is waited for to read them."""


class DeviceTimer(Protocol):
    """Times work on a device, which may run long after the host has queued it."""

    def mark(self) -> Any:
        """Mark the current end of the device's queue."""
        ...

    def seconds_between(self, start: Any, end: Any) -> float:
        """Time from one mark to another, once the device has reached both."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done all queued work."""
        ...


class HostTimer:
    """For the CPU, whose work is done when the call returns."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def seconds_between(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        pass


class CudaTimer:
    """Records CUDA events in the device's current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds_between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


def open_timer(device: torch.device) -> DeviceTimer:
    return CudaTimer(device) if device.type == "cuda" else HostTimer()


class Stopwatch:
    """Total time of the sections that it timed. Marks are read at `seconds`, not while work is
    being queued, so that the host never waits for the device.
    """

    def __init__(self, timer: DeviceTimer) -> None:
        self._timer = timer
        self._seconds = 0.0
        self._unread: list[tuple[Any, Any]] = []

    @contextmanager
    def __call__(self) -> Generator[None]:
        start = self._timer.mark()
        try:
            yield
        finally:
            self._unread.append((start, self._timer.mark()))
            if len(self._unread) >= MAX_UNREAD:
                self._timer.synchronize()
                self.seconds()

    def seconds(self) -> float:
        """The total so far; the device must be synchronized."""
        self._seconds += sum(self._timer.seconds_between(*marks) for marks in self._unread)
        self._unread.clear()
        return self._seconds


class _Reading(NamedTuple):
    """Totals since the clock started."""

    seconds: float
    """Without pauses."""
    steps: int
    lm_seconds: float
    sae_seconds: float


class Clock:
    """Measures the throughput of a pass and the shares of its time, over a recent window.

    Time inside `pause` does not count. Shares are measured on the device's own timeline.
    """

    def __init__(
        self,
        batch_size_tokens: int,
        timer: DeviceTimer,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.lm_call = Stopwatch(timer)
        """Times a call of the language model: `with clock.lm_call(): ...`"""
        self.sae_step = Stopwatch(timer)
        """Times one SAE's optimizer step."""
        self.steps = 0
        """Batches taken from the stream."""
        self._batch_size_tokens = batch_size_tokens
        self._timer = timer
        self._now = now
        self.began = now()
        self._paused_seconds = 0.0
        self._pause_began: float | None = None
        self._readings = deque([_Reading(0.0, 0, 0.0, 0.0)])

    @contextmanager
    def pause(self) -> Generator[None]:
        """Exclude a section, such as an evaluation; waits for queued work first, which counts."""
        assert self._pause_began is None, "pauses do not nest"
        self._timer.synchronize()
        self._pause_began = self._now()
        try:
            yield
        finally:
            self._timer.synchronize()
            self._paused_seconds += self._now() - self._pause_began
            self._pause_began = None

    def read(self) -> dict[str, float]:
        """Training tokens per second of each run on the pass, and the shares of the language
        model, of shuffling and of all SAEs.

        Call it inside `pause`. The values cover the last `WINDOW_SECONDS` of unpaused time, or the
        time since the previous reading where that is longer.
        """
        assert self._pause_began is not None, "the device must be synchronized"
        latest = _Reading(
            self._pause_began - self.began - self._paused_seconds,
            self.steps,
            self.lm_call.seconds(),
            self.sae_step.seconds(),
        )
        readings = self._readings
        readings.append(latest)
        while len(readings) > 2 and latest.seconds - readings[1].seconds >= WINDOW_SECONDS:
            readings.popleft()
        first = readings[0]
        seconds = latest.seconds - first.seconds
        lm_share = (latest.lm_seconds - first.lm_seconds) / seconds
        sae_share = (latest.sae_seconds - first.sae_seconds) / seconds
        return {
            "tokens_per_second": (latest.steps - first.steps) * self._batch_size_tokens / seconds,
            "lm_share": lm_share,
            "sae_share": sae_share,
            "buffer_share": 1 - lm_share - sae_share,
        }
