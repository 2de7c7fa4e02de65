"""How tables of earlier versions become those of today, in the words of both SQLite and PostgreSQL.

`MIGRATIONS[n]` leads from version n to n + 1. Columns are only ever added, and may be null.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Table, inspect, update
from sqlalchemy.schema import CreateColumn

from backend.models import Base, SchemaVersionRow


def migrate(connection: Connection, version: int) -> None:
    """Bring tables of `version` up to `SCHEMA_VERSION`, within the caller's transaction."""
    for number in range(version, SCHEMA_VERSION):
        MIGRATIONS[number](connection)
    connection.execute(update(SchemaVersionRow).values(version=SCHEMA_VERSION))


def _note_who_labels(connection: Connection) -> None:
    """Where a label comes from, and the jobs that make labels."""
    Base.metadata.tables["label_jobs"].create(connection)
    _add_missing_columns(connection, Base.metadata.tables["labels"])


def _number_what_happens(connection: Connection) -> None:
    """The queue's order, slots, alerts, and revisions that events are numbered by."""
    for name in ("runs", "metrics", "snapshots", "notices"):
        _add_missing_columns(connection, Base.metadata.tables[name])


MIGRATIONS: dict[int, Callable[[Connection], None]] = {
    1: _note_who_labels,
    2: _number_what_happens,
}
SCHEMA_VERSION = max(MIGRATIONS) + 1


def _add_missing_columns(connection: Connection, table: Table) -> None:
    known = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in known:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
