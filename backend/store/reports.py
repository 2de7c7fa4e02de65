"""A run's snapshots, notices and latest revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import ConflictError, NotFoundError
from backend.store.common import next_revision, now
from backend.store.models import NoticeRow, RunRow, SnapshotRow
from sae_engine.schema.records import SnapshotRecord
from sae_engine.schema.runs import AlertKind, RunStatus


class Latest(NamedTuple):
    """A run's latest revision and status."""

    revision: int
    status: RunStatus


def latest_revisions(session: Session, run_ids: Sequence[str]) -> dict[str, Latest]:
    """The latest revision of each run that exists."""
    rows = session.execute(
        select(RunRow.id, RunRow.revision, RunRow.status).where(RunRow.id.in_(run_ids))
    )
    return {run_id: Latest(revision, cast(RunStatus, status)) for run_id, revision, status in rows}


def add_snapshot(session: Session, run_id: str, record: SnapshotRecord) -> None:
    session.merge(
        SnapshotRow(
            run_id=run_id,
            step=record.step,
            tokens=record.tokens,
            index_tokens=record.index_tokens,
            seconds=record.seconds,
            final=record.final,
            revision=next_revision(session, run_id),
            created_at=now(),
        )
    )


def snapshots(session: Session, run_id: str, after: int = -1) -> Sequence[SnapshotRow]:
    """Snapshots published after a revision, ordered by step."""
    return session.scalars(
        select(SnapshotRow)
        .where(SnapshotRow.run_id == run_id, SnapshotRow.revision > after)
        .order_by(SnapshotRow.step)
    ).all()


def resolve_snapshot(session: Session, row: RunRow, step: int | None) -> int:
    """The step of the snapshot at `step`, by default of the newest one.

    Raises `NotFoundError` if there is none at `step`, `ConflictError` if the run has none at all.
    """
    steps = [snapshot.step for snapshot in snapshots(session, row.id)]
    if not steps:
        raise ConflictError(
            f"The run '{row.name}' ended without features."
            if row.ended_at is not None
            else f"The run '{row.name}' has no features yet; they appear with its first snapshot.",
            kind="no-features",
        )
    if step is not None and step not in steps:
        raise NotFoundError(
            f"The run '{row.name}' has no snapshot at step {step}; it has "
            f"{', '.join(map(str, steps))}.",
            kind="snapshot-not-found",
        )
    return steps[-1] if step is None else step


def add_notice(
    session: Session,
    run_id: str,
    *,
    level: str,
    message: str,
    step: int | None = None,
    kind: AlertKind | None = None,
) -> None:
    revision = next_revision(session, run_id)
    session.add(
        NoticeRow(
            run_id=run_id, step=step, level=level, kind=kind, message=message,
            revision=revision, created_at=now(),
        )
    )  # fmt: skip


def notices(session: Session, run_id: str, after: int = -1) -> Sequence[NoticeRow]:
    """Notices added after a revision, oldest first."""
    return session.scalars(
        select(NoticeRow)
        .where(NoticeRow.run_id == run_id, NoticeRow.revision > after)
        .order_by(NoticeRow.id)
    ).all()
