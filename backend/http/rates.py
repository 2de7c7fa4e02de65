"""Counts what each client did within the last minute, on a monotonic clock."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 60.0
MAX_CLIENTS = 10_000
"""Clients that are remembered; one more, and all are forgotten."""


class Rate:
    """At most `amount` per client within any minute."""

    def __init__(self, amount: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.amount = amount
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def wait_seconds(self, client: str) -> int:
        """0 if the client may act now, otherwise whole seconds until it may: 1 to 60."""
        times = self._recent(client)
        if len(times) < self.amount:
            return 0
        return max(1, math.ceil(times[-self.amount] + WINDOW_SECONDS - self._clock()))

    def count(self, client: str) -> None:
        """Count one action of the client."""
        if client not in self._times and len(self._times) >= MAX_CLIENTS:
            self._times.clear()
        self._times.setdefault(client, deque(maxlen=self.amount)).append(self._clock())

    def _recent(self, client: str) -> deque[float]:
        times = self._times.get(client, deque())
        while times and times[0] <= self._clock() - WINDOW_SECONDS:
            times.popleft()
        if not times:
            self._times.pop(client, None)
        return times
