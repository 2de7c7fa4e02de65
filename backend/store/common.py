"""Helpers shared by the modules of the store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from backend.store.models import DataFolderRow, RunRow
from sae_engine.schema.runs import RunStatus

ACTIVE: tuple[RunStatus, ...] = ("running", "stopping")
RESUMABLE: tuple[RunStatus, ...] = ("stopped", "failed", "interrupted")


def now() -> datetime:
    return datetime.now(UTC)


def folder_id(session: Session) -> str | None:
    """Id of the data folder that belongs to this database; None outside of clusters."""
    return session.scalar(select(DataFolderRow.id))


def set_folder_id(session: Session, folder_id: str) -> None:
    session.add(DataFolderRow(id=folder_id))


def changes_rows(session: Session, statement: Any) -> bool:
    """Execute an UPDATE or DELETE; returns whether it matched any row."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount > 0


def next_revision(session: Session, run_id: str) -> int:
    """Increment a run's revision and return it, to number what this transaction reports.

    Holds the run's row until the transaction ends, so that revisions become visible in order.
    """
    revision = session.scalar(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(revision=RunRow.revision + 1)
        .returning(RunRow.revision)
        .execution_options(synchronize_session=False)
    )
    return revision or 0
