"""A database of an earlier version is brought up to date and keeps what it holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from sqlalchemy import inspect

from backend import repository
from backend.db import Database
from backend.label_repository import written_labels
from backend.migrations import SCHEMA_VERSION
from backend.models import Base
from backend.settings import Settings
from sae_engine.presets import resolve_config
from sae_engine.schema.api import LabelUpdate

LABELS_OF_VERSION_1 = """
CREATE TABLE labels (
    run_id VARCHAR NOT NULL, feature INTEGER NOT NULL, label TEXT NOT NULL, notes TEXT NOT NULL,
    starred BOOLEAN NOT NULL, PRIMARY KEY (run_id, feature),
    FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
)
"""


def make_version_1(settings: Settings) -> str:
    """Turn today's tables into those of version 1, with one label; returns its run."""
    database = Database(settings.resolved_database_url)
    database.prepare()
    with database.writing() as session:
        run_id = repository.add_run(session, config=resolve_config("tiny", {})).id
    database.close()
    with closing(sqlite3.connect(settings.data_dir / "workbench.sqlite3")) as raw, raw:
        raw.executescript("DROP TABLE label_jobs; DROP TABLE labels;" + LABELS_OF_VERSION_1)
        raw.execute("INSERT INTO labels VALUES (?, 3, 'names', 'seen twice', 1)", (run_id,))
        raw.execute("UPDATE schema_version SET version = 1")
    return run_id


def test_labels_of_version_1_are_kept_as_a_persons(settings: Settings) -> None:
    run_id = make_version_1(settings)
    for _ in range(2):  # the second time there is nothing left to do
        database = Database(settings.resolved_database_url)
        database.prepare()
        with database.reading() as session:
            (written,) = written_labels(session, run_id).values()
        assert (written.feature, written.label, written.notes) == (3, "names", "seen twice")
        assert written.starred
        assert written.origin.author == "person"
        database.close()


def test_the_tables_become_those_of_today(settings: Settings) -> None:
    run_id = make_version_1(settings)
    database = Database(settings.resolved_database_url)
    database.prepare()
    found = inspect(database.engine)
    for table in Base.metadata.tables.values():
        columns = {column["name"] for column in found.get_columns(table.name)}
        assert columns == {column.name for column in table.columns}, table.name
    with database.writing() as session:
        repository.set_label(session, run_id, 4, LabelUpdate(label="new"))
    with database.reading() as session:
        assert written_labels(session, run_id, [4])[4].origin.created_at is not None
    database.close()
    with closing(sqlite3.connect(settings.data_dir / "workbench.sqlite3")) as raw:
        assert raw.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
