"""The lock of the one server that supervises a database.

A file beside an SQLite database; a lock in the database on PostgreSQL, whose servers may run on
several machines. The holder's end frees either, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import IO, Protocol

from backend.settings import Settings
from backend.store.database import Database, SessionLock

SUPERVISOR_LOCK = 5_389_002
"""Arbitrary, as `WRITERS_LOCK`."""

_log = logging.getLogger(__name__)


class Lock(Protocol):
    """Held by one process at a time."""

    def acquire(self) -> bool:
        """Take it, or make sure that it is still held; returns False while another holds it."""
        ...

    def release(self) -> None: ...


def supervisor_lock(settings: Settings, database: Database) -> Lock:
    return FileLock(settings.supervisor_lock) if database.is_sqlite else DatabaseLock(database)


class FileLock:
    """A lock on a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        if self._file is not None:
            return True
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class DatabaseLock:
    """A lock in the database, held by a dedicated connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: SessionLock | None = None

    def acquire(self) -> bool:
        if self._held is not None:
            if self._held.is_held():
                return True
            _log.warning("the connection that held the supervisor's lock was lost")
            self.release()
        self._held = self._database.session_lock(SUPERVISOR_LOCK)
        return self._held is not None

    def release(self) -> None:
        if self._held is not None:
            self._held.release()
        self._held = None
