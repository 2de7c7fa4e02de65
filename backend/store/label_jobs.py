"""Jobs that label features automatically."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session, object_session

from backend.errors import ConflictError
from backend.processes import is_alive, is_elsewhere
from backend.store.common import changes_rows, now
from backend.store.models import LabelJobRow
from sae_engine.schema.labels import LabelJobStatus


def add_label_job(
    session: Session,
    run_id: str,
    *,
    snapshot: int,
    model: str,
    total: int,
    pid: int,
    pid_created: float,
) -> LabelJobRow:
    """Store a job that starts now; raises `ConflictError` while another labels the same run."""
    settle_label_jobs(session)
    running = session.scalar(
        select(LabelJobRow).where(LabelJobRow.run_id == run_id, LabelJobRow.status == "running")
    )
    if running is not None:
        raise ConflictError(
            "Features of this run are already being labeled; wait for that to end, or cancel it.",
            kind="labeling",
        )
    row = LabelJobRow(
        run_id=run_id,
        status="running",
        snapshot=snapshot,
        model=model,
        total=total,
        created_at=now(),
        pid=pid,
        pid_created=pid_created,
    )
    session.add(row)
    session.flush()
    return row


def label_jobs(session: Session, run_id: str, limit: int = 20) -> Sequence[LabelJobRow]:
    """A run's jobs, newest first."""
    return session.scalars(
        select(LabelJobRow)
        .where(LabelJobRow.run_id == run_id)
        .order_by(LabelJobRow.id.desc())
        .limit(limit)
    ).all()


def count_for_label_job(session: Session, job_id: int, **more: int) -> bool:
    """Add to a job's counters; returns whether the job should continue."""
    values = {name: getattr(LabelJobRow, name) + number for name, number in more.items()}
    return _change(session, job_id, **values)


def note_label_problem(session: Session, job_id: int, problem: str) -> None:
    _change(session, job_id, problem=problem)


def end_label_job(
    session: Session, job_id: int, status: LabelJobStatus, problem: str | None = None
) -> bool:
    """Record how a job ended; returns False if it had already ended."""
    values: dict[str, Any] = {} if problem is None else {"problem": problem}
    return _change(session, job_id, status=status, ended_at=now(), **values)


def is_orphaned(row: LabelJobRow) -> bool:
    """Whether a job is marked as running although its server is gone.

    On PostgreSQL, servers on other machines, which cannot be seen from here, count as alive.
    """
    if row.status != "running" or is_alive(row.pid, row.pid_created):
        return False
    session = object_session(row)
    is_shared = session is not None and session.get_bind().dialect.name != "sqlite"
    return not (is_shared and is_elsewhere(row.pid_created))


def settle_label_jobs(session: Session) -> None:
    """Mark jobs whose server is gone as interrupted."""
    for row in session.scalars(select(LabelJobRow).where(LabelJobRow.status == "running")):
        if is_orphaned(row):
            end_label_job(session, row.id, "interrupted", "The server that did it has ended.")
            session.refresh(row)


def _change(session: Session, job_id: int, **values: Any) -> bool:
    running = (LabelJobRow.id == job_id, LabelJobRow.status == "running")
    return changes_rows(session, update(LabelJobRow).where(*running).values(values))
