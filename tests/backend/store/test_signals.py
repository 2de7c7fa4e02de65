"""A signal handler that raises during a transaction ends it with what the handler raised."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from backend.store.database import Database


class Interrupted(BaseException):
    """What the handler raises."""


def fail_in_driver() -> None:
    raise OperationalError("SELECT 1", {}, Exception("transaction status ACTIVE"))


def interrupt_driver() -> None:
    """A handler raises during a statement, and the driver fails to clean up after it."""
    try:
        raise Interrupted
    finally:
        fail_in_driver()


def test_an_error_of_the_interrupted_driver_does_not_hide_the_signal(database: Database) -> None:
    with pytest.raises(Interrupted), database.reading():
        interrupt_driver()


def test_an_error_while_a_signal_is_being_handled_stays_that_error(database: Database) -> None:
    try:
        raise Interrupted
    except Interrupted:
        with pytest.raises(OperationalError), database.writing():
            fail_in_driver()
