"""A transaction is repeated while the database is unavailable, and only then."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from backend.jobs.retry import when_available
from sae_engine.errors import DiskFullError


def sqlite_error(code: int, text: str = "") -> OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return OperationalError("", None, error)


def postgres_error(kind: type[psycopg.Error] = psycopg.OperationalError) -> OperationalError:
    return OperationalError("", None, kind("text"))


def failing(errors: list[DBAPIError]) -> Callable[[], str]:
    """A transaction that raises each of the errors once."""

    def transaction() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return transaction


UNAVAILABLE = [
    sqlite_error(sqlite3.SQLITE_BUSY),
    sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT),
    sqlite_error(sqlite3.SQLITE_LOCKED),
    postgres_error(),
    postgres_error(psycopg.errors.AdminShutdown),
    postgres_error(psycopg.errors.CannotConnectNow),
    postgres_error(psycopg.errors.LockNotAvailable),
    InterfaceError("", None, psycopg.InterfaceError(), connection_invalidated=True),
]


def test_it_is_repeated_with_growing_pauses_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses: list[float] = []
    assert when_available(failing([*UNAVAILABLE]), sleep=pauses.append) == "done"
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    assert len(caplog.records) == 2


def test_it_is_not_repeated_after_the_deadline() -> None:
    errors: list[DBAPIError] = [*UNAVAILABLE]
    with pytest.raises(OperationalError):
        when_available(failing(errors), deadline=time.monotonic())
    assert len(errors) == len(UNAVAILABLE) - 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full"), DiskFullError),
        (sqlite_error(sqlite3.SQLITE_ERROR, "no such table"), OperationalError),
        (postgres_error(psycopg.errors.UndefinedFile), OperationalError),
        (IntegrityError("", None, sqlite3.IntegrityError()), IntegrityError),
    ],
)
def test_other_errors_are_raised_at_once(error: DBAPIError, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        when_available(failing([error]), sleep=lambda _: pytest.fail("it waits"))
