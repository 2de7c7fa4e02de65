"""A signal handler that raises during a transaction ends it with what the handler raised."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from backend.store.database import Database


class Interrupted(BaseException):
    """What the handler raises."""


def driver_error() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("transaction status ACTIVE"))


def test_an_error_of_the_interrupted_driver_does_not_hide_the_signal(database: Database) -> None:
    with pytest.raises(Interrupted), database.reading():
        try:
            raise Interrupted
        finally:
            raise driver_error()


def test_an_error_while_a_signal_is_being_handled_stays_that_error(database: Database) -> None:
    try:
        raise Interrupted
    except Interrupted:
        with pytest.raises(OperationalError), database.writing():
            raise driver_error()
