"""Keeps a server that is in trouble from filling its disk with one message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

QUIET_SECONDS = 60.0
MAX_REMEMBERED = 1_000


class _Seen(NamedTuple):
    at: float
    repeats: int


class OnceAMinute(logging.Filter):
    """Passes a warning or error once a minute, with the number of repeats in between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[object, _Seen] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        error = record.exc_info[1] if record.exc_info else None
        key = (record.name, record.getMessage(), type(error), str(error)[:200])
        now, seen = self._clock(), self._seen.get(key)
        if seen is not None and now - seen.at < QUIET_SECONDS:
            self._seen[key] = seen._replace(repeats=seen.repeats + 1)
            return False
        if seen is not None and seen.repeats:
            record.msg = f"{record.getMessage()} ({seen.repeats} more times since)"
            record.args = None
        if len(self._seen) >= MAX_REMEMBERED:
            self._seen.clear()
        self._seen[key] = _Seen(now, 0)
        return True


def quiet_repeats() -> None:
    """Apply the filter to what this process prints."""
    handlers = [h for name in ("", "uvicorn") for h in logging.getLogger(name).handlers]
    printing = [h for h in handlers if h.__class__ is logging.StreamHandler]
    for handler in [*printing, logging.lastResort]:
        if handler is not None and not any(
            isinstance(each, OnceAMinute) for each in handler.filters
        ):
            handler.addFilter(OnceAMinute())
