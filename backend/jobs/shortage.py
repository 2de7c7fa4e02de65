"""Pauses after starts that failed for lack of a resource: descriptors, memory, processes, disk.

Kept by the supervisor. A shortage is temporary, so it must not fail a run; the queue waits, longer
after every failure, and says why.
"""

from __future__ import annotations

import errno
import logging
import math
import time

SHORTAGES = frozenset(
    {
        errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE,
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE,
    }
)  # fmt: skip
"""Error numbers that say something about the machine and nothing about the run."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

_log = logging.getLogger(__name__)


class StartPause:
    """How long to wait before the next start, and why."""

    def __init__(self, first_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._first_seconds = self._seconds = first_seconds
        self._until = -math.inf
        self._why: str | None = None

    def begin(self, why: str) -> None:
        """Wait, twice as long as after the previous failure."""
        if why != self._why:  # once, not at every attempt
            _log.warning("%s; the queue waits and tries again", why)
        self._why = why
        self._until = time.monotonic() + self._seconds
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE_SECONDS)

    def end(self) -> None:
        """Forget the failures, because a process has begun to run something."""
        if self._why is not None:
            _log.warning("runs can be started again")
        self._seconds, self._until, self._why = self._first_seconds, -math.inf, None

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    @property
    def reason(self) -> str | None:
        """Why the queue waits, as one sentence; None if it does not."""
        if self._why is None:
            return None
        seconds = max(0, math.ceil(self._until - time.monotonic()))
        when = f"in {seconds} s" if seconds else "now"
        return f"{self._why}; trying again {when}."
