"""What a run reports beside its measurements: snapshots, notices, how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.store.common import next_revision, now
from backend.store.models import NoticeRow, RunRow, SnapshotRow
from sae_engine.schema.records import SnapshotRecord
from sae_engine.schema.runs import AlertKind, RunStatus


class Latest(NamedTuple):
    """How far what is told of a run has come."""

    revision: int
    status: RunStatus


def latest_revisions(session: Session, run_ids: Sequence[str]) -> dict[str, Latest]:
    """Of each run that there is."""
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
    """Those told after a revision, in the order of their steps."""
    return session.scalars(
        select(SnapshotRow)
        .where(SnapshotRow.run_id == run_id, SnapshotRow.revision > after)
        .order_by(SnapshotRow.step)
    ).all()


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
    """Those told after a revision, oldest first."""
    return session.scalars(
        select(NoticeRow)
        .where(NoticeRow.run_id == run_id, NoticeRow.revision > after)
        .order_by(NoticeRow.id)
    ).all()
