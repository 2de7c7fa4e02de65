"""A writer that freezes in the middle of a transaction does not hold up the others for long."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from backend import store
from backend.store import database as database_module
from backend.store.database import Database, is_unavailable
from sae_engine.presets import resolve_config
from tests.backend.postgres import Postgres


def add(session: Session, name: str) -> None:
    store.add_run(session, config=resolve_config("quick-test", {"name": name}))


def freeze(frozen: Database, other: Database) -> None:
    """Begin to write, and go on after another writer had its turn."""
    with frozen.writing() as session:
        add(session, "lost")
        session.flush()
        with other.writing() as turn:
            add(turn, "kept")
        session.execute(text("SELECT 1"))


@pytest.mark.postgresql
def test_a_frozen_writer_loses_its_turn_and_can_try_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "FROZEN_SECONDS", 1)
    with postgres.database() as url:
        frozen, other = Database(url), Database(url, busy_seconds=20)
        try:
            frozen.prepare()
            began = time.monotonic()
            with pytest.raises(DBAPIError) as caught:
                freeze(frozen, other)
            assert is_unavailable(caught.value)
            assert time.monotonic() - began < 15
            with frozen.writing() as session:
                add(session, "again")
                assert {row.name for row in store.list_runs(session).rows} == {"kept", "again"}
        finally:
            frozen.close()
            other.close()
