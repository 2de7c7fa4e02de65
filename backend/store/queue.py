"""In what order runs that wait are started."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.store.models import RunRow

QUEUE_ORDER = (RunRow.queue_rank.nulls_first(), RunRow.queued_at, RunRow.seq)


def queued_runs(session: Session) -> Sequence[RunRow]:
    """Those that wait, the next one first."""
    return session.scalars(
        select(RunRow).where(RunRow.status == "queued").order_by(*QUEUE_ORDER)
    ).all()


def move_in_queue(session: Session, row: RunRow, position: int) -> None:
    """Put a run that waits at a place of the queue, counted from 1; the others keep their order."""
    if row.status != "queued":
        raise ConflictError(
            f"The run '{row.name}' is {row.status}; only a queued run has a place in the queue.",
            kind="not-queued",
        )
    rows = [other for other in queued_runs(session) if other.id != row.id]
    rows.insert(position - 1, row)
    for rank, each in enumerate(rows, 1):
        each.queue_rank = rank
    session.flush()


def last_rank(session: Session) -> int:
    """The rank of the last run that waits; 0 if none does."""
    waiting = select(func.max(RunRow.queue_rank)).where(RunRow.status == "queued")
    return session.scalar(waiting) or 0
