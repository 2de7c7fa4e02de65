"""Creates the tables and migrates those of earlier versions: a chain of Alembic revisions.

Uses no other wing; used by `store`, whose `Database.prepare` runs it. A new database goes through
all revisions in `versions/`. A revision describes the tables of its time, independent of
`store.models`, and never changes after a release.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


class UnknownRevisionError(Exception):
    """The tables are of a revision that this program does not have; the text names it."""


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Migrate an empty or older database to a revision, in the caller's transaction.

    Imports Alembic, which jobs, whose server has prepared the database, do not need.
    """
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    revisions = scripts()
    context = MigrationContext.configure(connection)
    current = context.get_current_revision()
    known = [script.revision for script in revisions.walk_revisions()]
    if current is not None and current not in known:
        raise UnknownRevisionError(current)
    with Operations.context(context):
        missing = list(revisions.iterate_revisions(revision, current or "base"))
        for script in reversed(missing):
            script.module.upgrade()
        if missing:
            context.stamp(revisions, missing[0].revision)


def head() -> str:
    """The newest revision."""
    revision = scripts().get_current_head()
    assert revision is not None
    return revision


@cache
def scripts() -> ScriptDirectory:
    """All revisions."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(Path(__file__).parent)
