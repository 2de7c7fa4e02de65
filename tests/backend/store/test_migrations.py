"""A database of any earlier version is brought up to date and keeps what it holds."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import JSON, Boolean, DateTime, MetaData, Table, insert, select, text

from backend import store
from backend.http.curves import metrics_series
from backend.migrations import SCRIPTS, head
from backend.store.database import Database, open_database
from backend.store.label_jobs import written_labels
from backend.store.models import Base
from sae_engine.errors import UserError
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord
from tests.backend.postgres import Postgres
from tests.backend.store.version_1 import ROWS, RUN_ID, make_version_1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "workbench.sqlite3"


def upgraded(path: Path) -> None:
    with open_database(f"sqlite:///{path}"):
        pass


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as raw:
        return list(raw.iterdump())


def difference_from_models(database: Database) -> object:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return compare_metadata(context, Base.metadata)


@pytest.mark.both_databases
def test_a_new_database_has_the_tables_of_the_models(database: Database) -> None:
    assert difference_from_models(database) == []


@pytest.mark.both_databases
def test_a_table_that_differs_from_its_model_would_be_noticed(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("ALTER TABLE label_jobs DROP COLUMN problem"))
        session.execute(text("DROP INDEX ix_runs_group_id"))
        session.execute(text("ALTER TABLE labels ADD COLUMN color VARCHAR"))
    found = difference_from_models(database)
    assert isinstance(found, list)
    assert sorted(each[0] for each in found) == ["add_column", "add_index", "remove_column"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_row_of_an_earlier_version_is_kept(path: Path, version: int) -> None:
    make_version_1(path)
    for number in range(2, version + 1):
        _as_of_version(path, number)
    upgraded(path)
    upgraded(path)  # there is nothing left to do
    with closing(sqlite3.connect(path)) as raw:
        names = {name for (name,) in raw.execute("SELECT name FROM sqlite_master")}
        assert "schema_version" not in names
        for table, rows in ROWS.items():
            if table != "schema_version":
                old_columns = _columns(path, table)[: len(rows[0])]
                kept = raw.execute(f"SELECT {','.join(old_columns)} FROM {table} ORDER BY 1, 2")
                assert kept.fetchall() == sorted(rows), table
    with open_database(f"sqlite:///{path}") as database:
        assert difference_from_models(database) == []


def _columns(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as raw:
        return [f'"{row[1]}"' for row in raw.execute(f"PRAGMA table_info({table})")]


def _as_of_version(path: Path, number: int) -> None:
    """Go one step on, as the programs of that version did it: the tables, and a number."""
    database = Database(f"sqlite:///{path}")
    with database.writing() as session:
        connection = session.connection()
        with Operations.context(MigrationContext.configure(connection)):
            SCRIPTS.get_revision(f"{number:04}").module.upgrade()
        connection.execute(text(f"UPDATE schema_version SET version = {number}"))
    database.close()


def test_what_version_1_knew_is_told_as_before(path: Path) -> None:
    make_version_1(path)
    with open_database(f"sqlite:///{path}") as database, database.reading() as session:
        row = store.get_run(session, RUN_ID)
        assert (row.name, [tag.tag for tag in row.tags], row.revision) == ("tiny", ["b", "a"], 0)
        assert row.config == resolve_config("tiny", {}).model_dump(mode="json")
        assert (row.fvu, row.l0, row.ce_delta) == (0.125, None, -0.5)
        series = metrics_series(store.metrics(session, RUN_ID))
        assert series.step == [10, 20]
        assert series.series == {"fvu": [0.5, 0.25], "l0": ["NaN", None]}
        [written] = written_labels(session, RUN_ID).values()
        assert (written.label, written.notes, written.starred) == ("names", "seen twice", True)
        assert written.origin.author == "person"
        assert [n.message for n in store.notices(session, RUN_ID)] == ["hello", "look"]
        assert [s.step for s in store.snapshots(session, RUN_ID)] == [20]


def test_a_migration_that_fails_in_the_middle_changes_nothing(path: Path) -> None:
    make_version_1(path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE runs SET metrics = 'no JSON' WHERE seq = 2")
    before = content(path)
    with pytest.raises(json.JSONDecodeError):
        upgraded(path)
    assert content(path) == before
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE runs SET metrics = '{}' WHERE seq = 2")
    upgraded(path)
    assert "schema_version" not in "".join(content(path))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "revision 9999"),
        (
            "CREATE TABLE schema_version AS SELECT 99 AS version; DELETE FROM alembic_version",
            "0099",
        ),
    ],
)
def test_a_database_of_a_newer_version_is_refused_and_left_alone(
    path: Path, change: str, found: str
) -> None:
    upgraded(path)
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(change)
    before = content(path)
    with pytest.raises(UserError, match=f"{found}.*whose newest is {head()}"):
        upgraded(path)
    assert content(path) == before


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def empty_url(request: pytest.FixtureRequest, path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        path.parent.mkdir()
        yield f"sqlite:///{path}"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.database(empty=True) as url:
        yield url


def test_rows_of_revision_3_are_kept_and_their_tables_take_larger_counts(empty_url: str) -> None:
    database = Database(empty_url)
    with database.writing() as session:
        connection = session.connection()
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            for number in (1, 2, 3):
                SCRIPTS.get_revision(f"{number:04}").module.upgrade()
        context.stamp(SCRIPTS, "0003")
        tables = MetaData()
        tables.reflect(connection)
        old = {n: _typed(tables.tables[n], rows) for n, rows in ROWS.items() if n in tables.tables}
        for name, rows in old.items():
            connection.execute(insert(tables.tables[name]), rows)
    database.prepare()
    with database.writing() as session:
        for name, rows in old.items():
            columns = [tables.tables[name].c[column] for column in rows[0]]
            kept = session.execute(select(*columns).order_by(*columns[:2]))
            assert [dict(row) for row in kept.mappings()] == rows, name
        record = MetricsRecord(step=30, tokens=2**40, time=2.0, values={})
        store.add_metrics(session, RUN_ID, [record])
    assert difference_from_models(database) == []
    database.close()


def _typed(table: Table, rows: list[tuple[object, ...]]) -> list[dict[str, Any]]:
    """Rows of version 1, whose columns come first, as values of the types of their columns."""
    typed: list[dict[str, Any]] = []
    for row in rows:
        values: dict[str, Any] = {}
        for column, value in zip(table.columns, row, strict=False):
            if value is not None and isinstance(column.type, DateTime):
                zone = UTC if column.type.timezone else None
                value = datetime.fromisoformat(str(value)).replace(tzinfo=zone)
            elif value is not None and isinstance(column.type, Boolean):
                value = bool(value)
            elif isinstance(column.type, JSON):
                value = json.loads(str(value))
            values[column.name] = value
        typed.append(values)
    return sorted(typed, key=lambda values: list(values.values())[:2])


def test_servers_that_start_at_once_prepare_it_once(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(4)]
    failures: list[BaseException] = []

    def prepare(database: Database) -> None:
        try:
            database.prepare()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for each in databases:
        each.close()


def test_revisions_stand_in_one_line_named_by_their_number() -> None:
    names = [script.revision for script in SCRIPTS.walk_revisions()]
    assert names == [f"{number:04}" for number in range(len(names), 0, -1)]
    assert all(Path(s.path).name.startswith(s.revision) for s in SCRIPTS.walk_revisions())
