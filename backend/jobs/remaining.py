"""The remaining time of a training run, from its measurements. Fed and read by `recorder`."""

from __future__ import annotations

from collections import deque
from statistics import median

from sae_engine.schema.records import MetricsRecord

MIN_SECONDS = 5.0
"""Training time before which the remaining time is a guess, and left out."""
WINDOW = 20
"""Intervals between measurements that say what a token costs now."""
UNUSUAL = 2.0
"""An interval this many times as long as usual holds an evaluation or a snapshot."""


class Remaining:
    """A token costs its median over the latest intervals, so that the estimate follows a machine
    that slows down or speeds up. Evaluations and snapshots are rare: what they add is averaged
    since the start.
    """

    def __init__(self) -> None:
        self._first: MetricsRecord | None = None
        self._last: MetricsRecord | None = None
        self._costs: deque[float] = deque(maxlen=WINDOW)
        """Seconds per token of the latest intervals."""
        self._rare_seconds = 0.0

    def add(self, measured: MetricsRecord) -> None:
        """Add the next measurement of this process."""
        last, self._last = self._last, measured
        if last is None:
            self._first = measured
            return
        tokens, seconds = measured.tokens - last.tokens, measured.time - last.time
        if tokens > 0:
            self._costs.append(seconds / tokens)
        usual = tokens * median(self._costs) if self._costs else 0.0
        if seconds > UNUSUAL * usual:
            self._rare_seconds += seconds - usual

    def seconds(self, total_tokens: int) -> float | None:
        """From the last measurement to the end; None while too little has been measured."""
        if self._first is None or self._last is None or not self._costs:
            return None
        if self._last.time - self._first.time < MIN_SECONDS:
            return None
        rare = self._rare_seconds / (self._last.tokens - self._first.tokens)
        return max(0, total_tokens - self._last.tokens) * (median(self._costs) + rare)
