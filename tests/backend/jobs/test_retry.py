"""A transaction is repeated while the database is unavailable, and only then."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from backend.jobs.retry import DatabaseRefusedError, when_available
from backend.jobs.verdicts import verdict
from backend.processes import EXIT_DATABASE_REFUSED
from backend.store.database import Database, refusal
from sae_engine.errors import DiskFullError
from tests.backend.postgres import USER, Postgres


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


def refused(text: str) -> OperationalError:
    return OperationalError(
        "", None, psycopg.OperationalError(f"connection failed: FATAL:  {text}")
    )


REFUSALS = [
    'password authentication failed for user "workbench"',
    'database "workbench" does not exist',
    'role "workbench" is not permitted to log in',
    'no pg_hba.conf entry for host "10.0.0.1", user "workbench"',
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_database_that_refuses_is_given_up_and_the_reason_named(text: str) -> None:
    pauses: list[float] = []
    with pytest.raises(DatabaseRefusedError, match="SAE_WORKBENCH_DATABASE_URL") as raised:
        when_available(failing([refused(text)] * 3), sleep=pauses.append, refused_seconds=0)
    assert text in str(raised.value)
    assert pauses == []


def test_a_refusal_that_passes_ends_nothing() -> None:
    errors: list[DBAPIError] = [refused(REFUSALS[1]), UNAVAILABLE[4], refused(REFUSALS[1])]
    assert when_available(failing(errors), sleep=lambda _: None) == "done"


@pytest.mark.parametrize("error", UNAVAILABLE)
def test_a_database_that_is_away_does_not_refuse(error: DBAPIError) -> None:
    assert refusal(error) is None


@pytest.mark.postgresql
def test_a_dropped_database_and_an_unknown_role_refuse(postgres: Postgres) -> None:
    with postgres.database() as url:
        dropped = url
    for url, words in (
        (dropped, "does not exist"),
        (dropped.replace(USER, "nobody"), 'role "nobody" does not exist'),
    ):
        database = Database(url)
        with pytest.raises(OperationalError) as raised, database.reading() as session:
            session.connection()
        assert words in (refusal(raised.value) or "")
        database.close()


def test_a_refused_job_is_interrupted_and_can_be_resumed() -> None:
    status, kind, message = verdict(EXIT_DATABASE_REFUSED, was_forced=False)
    assert (status, kind) == ("interrupted", "DatabaseRefusedError")
    assert "Resume" in message
