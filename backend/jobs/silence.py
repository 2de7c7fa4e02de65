"""How long a run has reported nothing, and how long it has made no progress.

Kept by the supervisor. Uses a monotonic clock that stops during sleep, and never compares the
clocks of two machines.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import NamedTuple

from backend.store.models import RunRow


class Report(NamedTuple):
    """A run's latest report, and when (`time.monotonic`) it was first seen."""

    job: str | None
    reported_at: datetime | None
    reported: float
    progress: tuple[object, ...]
    """Phase, step and tokens; a run that is only alive reports the same ones again."""
    progressed: float
    is_noted: bool = False

    @classmethod
    def next(cls, earlier: Report | None, row: RunRow) -> Report:
        at = time.monotonic()
        progress = (row.phase, row.step, row.tokens)
        if earlier is None or (earlier.job, earlier.progress) != (row.job, progress):
            return cls(row.job, row.reported_at, at, progress, at)
        if earlier.reported_at != row.reported_at:
            return earlier._replace(reported_at=row.reported_at, reported=at)
        return earlier

    def silence(self) -> timedelta:
        """Time since the last report."""
        return timedelta(seconds=time.monotonic() - self.reported)

    def standstill(self) -> timedelta:
        """Time since the last progress."""
        return timedelta(seconds=time.monotonic() - self.progressed)
