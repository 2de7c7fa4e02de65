"""How the tables of earlier versions become those of today, and those of today come to be.

`versions/` holds Alembic revisions, one behind the other; a new database goes through all of them.
They say what the tables were and never change again: what `models` says today is not for them.
"""

from __future__ import annotations

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

SCRIPTS = ScriptDirectory(Path(__file__).parent)

EARLIER_SCHEME = "schema_version"
"""A table of one number, by which the first three versions were told apart."""


class UnknownRevisionError(Exception):
    """The tables are of a revision that this program does not have; its text names it."""


def upgrade(connection: Connection) -> None:
    """Bring a database of any earlier version, or an empty one, up to date.

    Within the caller's transaction: either all of it is done or nothing.
    """
    context = MigrationContext.configure(connection)
    current = context.get_current_revision()
    earlier = None
    if current is None and inspect(connection).has_table(EARLIER_SCHEME):
        earlier = connection.exec_driver_sql(f"SELECT version FROM {EARLIER_SCHEME}").scalar_one()
        current = f"{earlier:04}"
    known = [script.revision for script in SCRIPTS.walk_revisions()]
    if current is not None and current not in known:
        raise UnknownRevisionError(current)
    with Operations.context(context) as operations:
        if earlier is not None:
            operations.drop_table(EARLIER_SCHEME)
        missing = list(SCRIPTS.iterate_revisions("head", current or "base"))
        for script in reversed(missing):
            script.module.upgrade()
        if missing:
            context.stamp(SCRIPTS, missing[0].revision)


def head() -> str:
    """The newest revision."""
    revision = SCRIPTS.get_current_head()
    assert revision is not None
    return revision
