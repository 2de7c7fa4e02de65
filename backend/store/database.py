"""The database connection: how transactions begin, and which version of the tables is accepted.

Writers take turns: each takes the write lock at once (`BEGIN IMMEDIATE`, on PostgreSQL an advisory
lock), so that two of them wait for each other instead of failing half-way or undoing each other.
Readers never wait and see one moment (write-ahead log, `REPEATABLE READ`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from backend.migrations import UnknownRevisionError, head, upgrade
from sae_engine.errors import UserError

BUSY_TIMEOUT_SECONDS = 30
DISK_FULL = (
    "The disk that holds the database is full. What was saved before is kept; make room and go on "
    "from there."
)
WRITERS_LOCK = 5_389_001
"""PostgreSQL knows advisory locks by number only."""


class Database:
    """Hands out sessions; `reading` never blocks, `writing` commits at the end of its block."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        if self._is_sqlite:
            self.engine = create_engine(
                self._url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None}
            )
            _use_sqlite(self.engine)
            readers = self.engine
        else:
            try:
                self.engine = create_engine(self._url, pool_pre_ping=True)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"A {self._url.get_backend_name()} database needs the package {error.name}: "
                    "pip install 'sae-workbench[postgresql]'."
                ) from None
            event.listen(self.engine, "begin", _take_turns)
            readers = self.engine.execution_options(isolation_level="REPEATABLE READ")
        writers = self.engine.execution_options(writes=True)
        self._reading = sessionmaker(readers, expire_on_commit=False)
        self._writing = sessionmaker(writers, expire_on_commit=False)

    @contextmanager
    def reading(self) -> Generator[Session]:
        """A session on one consistent view; what is changed in it is not kept."""
        with self._reading() as session:
            yield session

    @contextmanager
    def writing(self) -> Generator[Session]:
        """A session that owns the write lock and commits when its block ends without an
        exception.
        """
        with self._writing.begin() as session:
            yield session

    def prepare(self) -> None:
        """Make the tables where there are none and bring older ones up to date; raises `UserError`
        for tables of a later version, and for a database that does not answer.
        """
        try:
            if self._is_sqlite and self._url.database:
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
                with self.engine.connect() as connection:
                    _run(connection.connection.dbapi_connection, "PRAGMA journal_mode = WAL")
            with self.writing() as session:
                upgrade(session.connection())
        except OperationalError as error:
            raise UserError(
                f"The database {self._url.render_as_string()} cannot be used: {error.orig}".rstrip()
            ) from error
        except UnknownRevisionError as error:
            raise UserError(
                f"The tables of the database {self._url.render_as_string()} are of revision "
                f"{error}, which is unknown to this program, whose newest is {head()}; use the "
                "SAE Workbench that wrote them, or another data folder."
            ) from None

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def open_database(url: str) -> Generator[Database]:
    """The database at `url`, its tables made where there are none; closed afterwards."""
    database = Database(url)
    database.prepare()
    try:
        yield database
    finally:
        database.close()


def lacks_room(error: OperationalError) -> bool:
    """Whether a statement failed because the database's disk is full: in SQLite's words, or
    PostgreSQL's.
    """
    return any(words in str(error.orig) for words in ("disk is full", "No space left"))


def _take_turns(connection: Connection) -> None:
    """On PostgreSQL: a lock that a writer keeps until its transaction ends."""
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_SECONDS}s'")
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
    """SQLite's own knows no letters but those of ASCII."""
    return None if text is None else text.lower()


def _run(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()
