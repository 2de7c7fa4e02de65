"""What a run reports while it works: measurements, snapshots, notices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, cast

from sqlalchemy import Row, delete, select
from sqlalchemy.orm import Session

from backend.models import MetricsRow, NoticeRow, RunRow, SnapshotRow
from backend.repository.common import next_revision, now
from sae_engine.schema.records import MetricsRecord, SnapshotRecord
from sae_engine.schema.runs import AlertKind, RunStatus


def add_metrics(session: Session, run_id: str, records: Sequence[MetricsRecord]) -> None:
    """Store measurements; at a step that has some already, the same names are overwritten."""
    revision = next_revision(session, run_id)
    steps = {record.step for record in records}
    known = session.scalars(
        select(MetricsRow).where(MetricsRow.run_id == run_id, MetricsRow.step.in_(steps))
    )
    rows = {row.step: row for row in known}
    for record in records:
        row = rows.get(record.step)
        values = {**json.loads(row.values), **record.values} if row else record.values
        if row is None:
            row = rows[record.step] = MetricsRow(run_id=run_id, step=record.step)
            session.add(row)
        row.tokens, row.time, row.revision = record.tokens, record.time, revision
        row.values = json.dumps(values, separators=(",", ":"))


def forget_after(session: Session, run_id: str, step: int) -> None:
    """Drop what a run measured, published and told of steps after `step`: it goes on from
    there.
    """
    for table in (MetricsRow, SnapshotRow, NoticeRow):
        session.execute(delete(table).where(table.run_id == run_id, table.step > step))


def metrics(
    session: Session, run_id: str, since_step: int = -1
) -> Sequence[Row[int, int, float, str]]:
    """(step, tokens, time, values) of every step after `since_step`, in order."""
    return session.execute(
        select(MetricsRow.step, MetricsRow.tokens, MetricsRow.time, MetricsRow.values)
        .where(MetricsRow.run_id == run_id, MetricsRow.step > since_step)
        .order_by(MetricsRow.step)
    ).all()


def metrics_between(session: Session, run_id: str, after: int, upto: int) -> Sequence[MetricsRow]:
    """What was measured in revisions `after` + 1 to `upto`, in the order it was told."""
    return session.scalars(
        select(MetricsRow)
        .where(
            MetricsRow.run_id == run_id, MetricsRow.revision > after, MetricsRow.revision <= upto
        )
        .order_by(MetricsRow.revision, MetricsRow.step)
    ).all()


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
