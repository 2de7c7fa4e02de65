"""The order in which queued runs are started."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.store.models import RunRow


def queued_runs(session: Session) -> Sequence[RunRow]:
    """The queue, next run first."""
    return session.scalars(
        select(RunRow).where(RunRow.status == "queued").order_by(RunRow.queue_rank, RunRow.seq)
    ).all()


def move_in_queue(session: Session, row: RunRow, position: int) -> None:
    """Move a queued run to a position, counted from 1; the others keep their order."""
    if row.status != "queued":
        raise ConflictError(
            f"The run '{row.name}' is {row.status}; only a queued run has a place in the queue.",
            kind="not-queued",
        )
    rows = [other for other in queued_runs(session) if other.id != row.id]
    rows.insert(min(position - 1, len(rows)), row)
    for rank, each in enumerate(rows, 1):
        each.queue_rank = rank
    session.flush()


def first_rank(session: Session) -> int:
    """The rank of the next queued run; 1 if the queue is empty."""
    queued = select(func.min(RunRow.queue_rank)).where(RunRow.status == "queued")
    rank = session.scalar(queued)
    return 1 if rank is None else rank


def last_rank(session: Session) -> int:
    """The rank of the last queued run; 0 if the queue is empty."""
    queued = select(func.max(RunRow.queue_rank)).where(RunRow.status == "queued")
    return session.scalar(queued) or 0
