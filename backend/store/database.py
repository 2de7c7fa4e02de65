"""The database connection: how transactions begin, and which version of the tables is accepted.

Writers take turns: each takes the write lock when its transaction begins (`BEGIN IMMEDIATE`; on
PostgreSQL an advisory lock), so that two of them wait for each other instead of failing halfway or
overwriting each other. Readers never wait and see one consistent state (write-ahead log,
`REPEATABLE READ`).
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from backend.migrations import UnknownRevisionError, head, upgrade
from sae_engine.errors import UserError, cause_of

BUSY_TIMEOUT_SECONDS = 30.0
DISK_FULL = (
    "The disk that holds the database is full. Everything saved so far is kept; free some space "
    "and resume."
)
CONNECTION_TIMEOUTS = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""For libpq, in seconds, the last one in milliseconds: a PostgreSQL host that vanishes is noticed
within about 20 seconds.
"""
FROZEN_SECONDS = 10
"""A writer that sends nothing for so long in the middle of a transaction, as that of a frozen
machine, loses its connection, or it would hold up all others.
"""
IDLE_TIMEOUT = "idle_in_transaction_session_timeout"
READERS = {"pool_size": 5, "max_overflow": 20, "pool_timeout": 10}
WRITERS = {"pool_size": 2, "max_overflow": 23, "pool_timeout": 10}
"""Connections kept open, those opened on top, and the seconds that a transaction waits for one."""
WRITERS_LOCK = 5_389_001
"""Arbitrary: PostgreSQL identifies advisory locks by number."""
DISK_FULL_STATE = "53100"
LOCK_TIMEOUT_STATE = "55P03"
UNAVAILABLE_STATES = ("08", "40", "53", "55P03", "57P")
"""PostgreSQL's codes for lost connections, conflicts, lack of resources, lock timeouts, restarts.
"""
_REFUSALS = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|is not permitted to log in"
    r"|permission denied for database|(database|role) \".*\" does not exist"
    r"|not currently accepting connections"
)


class DatabaseGoneError(UserError):
    """The SQLite file was deleted, moved or replaced while this process used it."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"The database '{path}' was moved, replaced or deleted while it was in use; put it "
            "back, or restart the server."
        )


class SessionLock:
    """A PostgreSQL lock that lasts as long as the connection that holds it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_held(self) -> bool:
        """Whether the connection still exists; nothing reconnects it."""
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except DBAPIError:
            return False
        return True

    def release(self) -> None:
        """Close the connection, which frees the lock."""
        self._connection.invalidate()
        self._connection.close()


class Database:
    """Hands out sessions; `reading` never blocks, `writing` commits when its block ends."""

    def __init__(self, url: str, *, busy_seconds: float = BUSY_TIMEOUT_SECONDS) -> None:
        """A writer waits `busy_seconds` for the others before it raises `OperationalError`."""
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._file: tuple[int, int] | None = None
        """Device and inode of the SQLite file."""
        self.engine = self._open(busy_seconds, WRITERS)
        self._readers = self._open(busy_seconds, READERS)
        isolated = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        readers = self._readers.execution_options(**isolated)
        writers = self.engine.execution_options(writes=True)
        self._reading = sessionmaker(readers, expire_on_commit=False)
        self._writing = sessionmaker(writers, expire_on_commit=False)

    def _open(self, busy_seconds: float, pool: Mapping[str, int]) -> Engine:
        """An engine with its own connections; those of readers are never taken by writers that
        wait for their turn.
        """
        if self.is_sqlite:
            options = {"timeout": busy_seconds, "isolation_level": None}
            engine = create_engine(self._url, connect_args=options, **pool)
            _use_sqlite(engine)
            return engine
        try:
            engine = create_engine(
                self._url, pool_pre_ping=True, connect_args=CONNECTION_TIMEOUTS, **pool
            )
        except ModuleNotFoundError as error:
            raise UserError(
                f"A {self._url.get_backend_name()} database needs the package {error.name}: "
                "pip install 'sae-workbench[postgresql]'."
            ) from None
        _take_turns(engine, busy_seconds)
        return engine

    @contextmanager
    def reading(self) -> Generator[Session]:
        """A session with one consistent view; changes made in it are discarded.

        Raises `DatabaseGoneError`, as `writing` does.
        """
        self._check_file()
        with _signals_first(), self._reading() as session:
            yield session

    @contextmanager
    def writing(self) -> Generator[Session]:
        """A session that holds the write lock; commits unless its block raises."""
        self._check_file()
        with _signals_first(), self._writing.begin() as session:
            yield session

    def _check_file(self) -> None:
        """Raise `DatabaseGoneError` unless the SQLite file is the one that this process opened.

        Connections to a file that was deleted or moved still work, but what they store is lost.
        """
        if not self.is_sqlite or not (path := self._url.database):
            return
        try:
            stat = os.stat(path)  # noqa: PTH116 - called for every transaction
        except OSError:
            raise DatabaseGoneError(path) from None
        found = (stat.st_dev, stat.st_ino)
        self._file = self._file or found
        if found != self._file:
            raise DatabaseGoneError(path)

    def session_lock(self, number: int) -> SessionLock | None:
        """Take a PostgreSQL lock; None if another connection holds it."""
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            taken = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({number})").scalar()
        except BaseException:
            connection.close()
            raise
        if taken:
            return SessionLock(connection)
        connection.close()
        return None

    def prepare(self) -> None:
        """Create the tables, or migrate older ones.

        Raises `UserError` for tables of an unknown revision and for an unreachable database.
        """
        try:
            self._create_tables()
        except OperationalError as error:
            raise UserError(
                f"Cannot use the database {self._url.render_as_string()}: {error.orig}".rstrip()
            ) from error
        except UnknownRevisionError as error:
            raise UserError(
                f"The database {self._url.render_as_string()} has tables of revision {error}, but "
                f"the newest revision known here is {head()}; use the SAE Workbench that wrote "
                "them, or another data folder."
            ) from None

    def _create_tables(self) -> None:
        if self.is_sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
            with self.engine.connect() as connection:
                _run(connection.connection.dbapi_connection, "PRAGMA journal_mode = WAL")
        with self.writing() as session:
            upgrade(session.connection())

    def close(self) -> None:
        self.engine.dispose()
        self._readers.dispose()


@contextmanager
def open_database(url: str, *, busy_seconds: float = BUSY_TIMEOUT_SECONDS) -> Generator[Database]:
    """The database at `url` with its tables created or migrated; closed afterwards."""
    database = Database(url, busy_seconds=busy_seconds)
    database.prepare()
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _signals_first() -> Generator[None]:
    """Raise what a signal handler raised in the middle of a statement, instead of the error that
    the interrupted driver raises while it cleans up.
    """
    handled = sys.exception()
    try:
        yield
    except DBAPIError as error:
        behind: BaseException | None = error
        while isinstance(behind, Exception):
            behind = behind.__cause__ or behind.__context__
        if behind is not None and behind is not handled:
            raise behind from None
        raise


def lacks_room(error: DBAPIError) -> bool:
    """Whether a statement failed because the database's disk is full."""
    if getattr(error.orig, "sqlstate", None) == DISK_FULL_STATE:
        return True
    return any(words in str(error.orig) for words in ("disk is full", "No space left"))


def is_unavailable(error: DBAPIError) -> bool:
    """Whether a statement failed because the database is locked, restarting or unreachable, so
    that the same transaction may succeed later.
    """
    if error.connection_invalidated or is_locked(error):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return False
    state = getattr(error.orig, "sqlstate", None)  # None: there is no connection
    return isinstance(error, OperationalError) and (
        state is None or state.startswith(UNAVAILABLE_STATES)
    )


def is_locked(error: DBAPIError) -> bool:
    """Whether a statement failed because other writers kept it waiting for too long."""
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # without its extension
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(error.orig, "sqlstate", None) == LOCK_TIMEOUT_STATE


def log_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """Log an error with its traceback, or in one line if the database is away."""
    if isinstance(error, OperationalError):
        log.error("%s (%s)", what, cause_of(error.orig or error))
    else:
        log.error(what, exc_info=error)


def refusal(error: DBAPIError) -> str | None:
    """Why a PostgreSQL server that answers lets nobody in, such as a wrong password or a dropped
    database; None for any other error.

    libpq reports no code before a connection exists, so this reads the server's English messages;
    in another language, the server counts as unreachable.
    """
    text = str(error.orig)
    if getattr(error.orig, "sqlstate", None) is not None or not _REFUSALS.search(text):
        return None
    return text.strip().rpartition("FATAL:")[2].strip()


def _take_turns(engine: Engine, busy_seconds: float) -> None:
    """On PostgreSQL, let every writer hold one lock until its transaction ends."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        if connection.get_execution_options().get("writes", False):
            milliseconds = round(1000 * busy_seconds)
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
            connection.exec_driver_sql(f"SET LOCAL {IDLE_TIMEOUT} = {1000 * FROZEN_SECONDS}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def _use_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        _run(connection, "PRAGMA foreign_keys = ON")
        _run(connection, "PRAGMA synchronous = NORMAL")
        connection.create_function("lower", 1, _lower, deterministic=True)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _lower(text: str | None) -> str | None:
    """Lower case in any alphabet; SQLite's built-in `lower` converts ASCII letters only."""
    return None if text is None else text.lower()


def _run(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()
