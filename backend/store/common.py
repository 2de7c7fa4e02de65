"""What every part of the repository needs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from backend.store.models import RunRow
from sae_engine.schema.runs import RunStatus

ACTIVE: tuple[RunStatus, ...] = ("running", "stopping")
RESUMABLE: tuple[RunStatus, ...] = ("stopped", "failed", "interrupted")


def now() -> datetime:
    return datetime.now(UTC)


def executed(session: Session, statement: Any) -> bool:
    """Carry out a statement; whether it met a row."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount > 0


def next_revision(session: Session, run_id: str) -> int:
    """The number of what this transaction tells of a run; it goes up with each.

    Holds the run's row until the transaction ends, so that numbers become visible in order.
    """
    revision = session.scalar(
        update(RunRow)
        .where(RunRow.id == run_id)
        .values(revision=RunRow.revision + 1)
        .returning(RunRow.revision)
        .execution_options(synchronize_session=False)
    )
    return revision or 0
