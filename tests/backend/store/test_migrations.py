"""A new database gets the tables of the models; an unknown one is refused and left alone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from backend.migrations import head, scripts, upgrade
from backend.store.database import Database, open_database
from backend.store.models import Base, RunRow
from sae_engine.errors import UserError
from tests.backend.postgres import Postgres


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "workbench.sqlite3"


def prepare(path: Path) -> None:
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
def test_a_table_that_differs_from_its_model_is_detected(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("ALTER TABLE label_jobs DROP COLUMN problem"))
        session.execute(text("DROP INDEX ix_runs_group_id"))
        session.execute(text("ALTER TABLE labels ADD COLUMN color VARCHAR"))
    found = difference_from_models(database)
    assert isinstance(found, list)
    assert sorted(each[0] for each in found) == ["add_column", "add_index", "remove_column"]


def test_preparing_a_current_database_changes_nothing(path: Path) -> None:
    prepare(path)
    before = content(path)
    prepare(path)
    assert content(path) == before


def test_a_migration_that_fails_halfway_changes_nothing(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE labels (mine TEXT)")  # in the way of one of the last tables
    before = content(path)
    with pytest.raises(UserError, match="table labels already exists"):
        prepare(path)
    assert content(path) == before


def test_a_database_of_an_unknown_revision_is_refused_and_left_alone(path: Path) -> None:
    prepare(path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    before = content(path)
    with pytest.raises(UserError, match=f"revision 9999, but the newest .* is {head()}"):
        prepare(path)
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


def test_servers_that_start_at_once_create_the_tables_once(empty_url: str) -> None:
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


def test_revisions_form_one_line_in_the_order_of_their_file_names() -> None:
    revisions = list(scripts().walk_revisions())  # newest first
    names = [each.revision for each in revisions]
    assert names == sorted(names, reverse=True)
    assert all(Path(each.path).name.startswith(each.revision) for each in revisions)


@pytest.mark.parametrize("earlier", ["0001", "0005"])
def test_a_database_from_before_the_first_revision_is_refused(path: Path, earlier: str) -> None:
    prepare(path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = ?", (earlier,))
    with pytest.raises(UserError, match=f"revision {earlier}, but the newest .* is {head()}"):
        prepare(path)


def test_active_runs_of_the_first_version_get_the_job_of_their_process(empty_url: str) -> None:
    columns = (
        "id, name, status, config, notes, archived, created_at, queued_at, step, tokens, metrics, "
        "revision, status_revision, pid, pid_created"
    )
    runs = [("one", 7), ("its sister", 7), ("other", 8), ("claimed", None), ("ended", 7)]
    with closing(Database(empty_url)) as database:
        with Session(database.engine) as session, session.begin():
            upgrade(session.connection(), "20261129")
            for name, pid in runs:
                status = "failed" if name == "ended" else "running"
                start = None if pid is None else 2.0**52 + 1
                session.execute(
                    text(
                        f"INSERT INTO runs ({columns}) VALUES (:id, :id, :status, '{{}}', '', "
                        "false, '2026-11-29', '2026-11-29', 0, 0, '{}', 0, 0, :pid, :start)"
                    ),
                    {"id": name, "status": status, "pid": pid, "start": start},
                )
        database.prepare()
        assert difference_from_models(database) == []
        with database.reading() as session:
            jobs = {row.id: row.job for row in session.scalars(select(RunRow))}
    assert jobs["one"] == jobs["its sister"] != jobs["other"]
    assert (jobs["claimed"], jobs["ended"]) == ("claimed", None)
