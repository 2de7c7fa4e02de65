"""Transactions of jobs, which wait for a database that is locked, restarting or unreachable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from backend.store.database import (
    DISK_FULL,
    DatabaseGoneError,
    is_unavailable,
    lacks_room,
    refusal,
)
from sae_engine.errors import DiskFullError, UserError

JOB_BUSY_SECONDS = 2.0
"""How long one attempt of a job waits for other writers; signals are handled between attempts."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
REFUSED_SECONDS = 60.0
"""How long a job waits for a database that refuses it, for example while it is being restored."""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class DatabaseRefusedError(UserError):
    """The database answers, but no longer accepts this process."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The database refuses this run ({reason}); make it accept SAE_WORKBENCH_DATABASE_URL, "
            "and resume from the last checkpoint."
        )


def _reason(error: DBAPIError | DatabaseGoneError) -> str | None:
    """Why a transaction is unlikely to succeed soon; None if it may. Raises `DiskFullError`, and
    the error itself if it does not mean that the database is unavailable.
    """
    if isinstance(error, DatabaseGoneError):
        return str(error)
    if lacks_room(error):
        raise DiskFullError(DISK_FULL) from error
    if not is_unavailable(error):
        raise error
    return refusal(error)


def when_available(
    transaction: Callable[[], _Result],
    *,
    deadline: float = math.inf,
    sleep: Callable[[float], None] = time.sleep,
    refused_seconds: float = REFUSED_SECONDS,
) -> _Result:
    """Run a transaction, and repeat it for as long as the database is unavailable.

    After the `deadline` (of `time.monotonic`) it is not repeated, and the error is raised. Raises
    `DiskFullError` if the database's disk is full, `DatabaseRefusedError` if it answers but refuses
    this process for `refused_seconds`.
    """
    began = time.monotonic()
    refused_since = math.inf
    pause = FIRST_PAUSE_SECONDS
    has_failed = False
    while True:
        try:
            result = transaction()
        except (DBAPIError, DatabaseGoneError) as error:
            reason = _reason(error)
            if time.monotonic() >= deadline:
                raise
            refused_since = min(refused_since, time.monotonic()) if reason else math.inf
            if reason and time.monotonic() - refused_since >= refused_seconds:
                raise DatabaseRefusedError(reason) from error
            if not has_failed:
                why = error.orig if isinstance(error, DBAPIError) else error
                _log.warning("the database is unavailable, waiting for it: %s", why)
            has_failed = True
        else:
            if has_failed:
                seconds = time.monotonic() - began
                _log.warning("the database is available again after %.1f s", seconds)
            return result
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
