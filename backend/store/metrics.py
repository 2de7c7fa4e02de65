"""A run's measurements: the newest points as rows, all earlier ones packed into blocks.

Before a packed point changes or is deleted, the blocks from it on are unpacked into rows. So a
block never changes, and every row's step is greater than every block's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.orm import Session

from backend.store.common import next_revision
from backend.store.metric_points import (
    Points,
    Row,
    joined,
    packed,
    packed_values,
    points_of,
    unpacked,
)
from backend.store.models import MetricBlockRow, MetricsRow, NoticeRow, SnapshotRow
from sae_engine.schema.records import MetricsRecord


class Packing(NamedTuple):
    """When rows are packed into a block."""

    block_points: int = 1024
    rows_kept: int = 256
    """Number of the newest rows never packed, since late measurements mostly add to those."""


_ROW = (
    MetricsRow.step, MetricsRow.tokens, MetricsRow.time, MetricsRow.revision, MetricsRow.values,
)  # fmt: skip


def add_metrics(
    session: Session,
    run_id: str,
    records: Sequence[MetricsRecord],
    packing: Packing = Packing(),  # noqa: B008
) -> None:
    """Store measurements; at a step that already has some, the same metrics are overwritten."""
    if not records:
        return
    revision = next_revision(session, run_id)
    _unpack_from(session, run_id, min(record.step for record in records))
    known = MetricsRow.step.in_({record.step for record in records})
    merged = {row.step: row for row in _rows(session, run_id, known)}
    if merged:
        session.execute(delete(MetricsRow).where(MetricsRow.run_id == run_id, known))
    for record in records:
        values = record.values
        if record.step in merged:
            values = {**json.loads(merged[record.step].values), **values}
        merged[record.step] = Row(
            record.step, record.tokens, record.time, revision, packed_values(values)
        )
    _insert(session, run_id, merged.values())
    _pack(session, run_id, packing)


def forget_after(session: Session, run_id: str, step: int) -> dict[str, float]:
    """Delete a run's measurements, snapshots and notices of steps after `step`. Return the latest
    value of each metric that is left.
    """
    _unpack_from(session, run_id, step + 1)
    for table in (MetricsRow, SnapshotRow, NoticeRow):
        session.execute(delete(table).where(table.run_id == run_id, table.step > step))
    return metrics(session, run_id).latest()


def metrics(session: Session, run_id: str, since_step: int = -1) -> Points:
    """Every point after `since_step`, ordered by step."""
    blocks = _blocks(session, run_id, MetricBlockRow.last_step > since_step)
    rows = _rows(session, run_id, MetricsRow.step > since_step)
    points = joined([*map(unpacked, blocks), points_of(rows)])
    if len(points) and points.step[0] <= since_step:
        points = points.at(points.step > since_step)
    return points


def metrics_between(session: Session, run_id: str, after: int, upto: int) -> Points:
    """Points stored in revisions `after` + 1 to `upto`, ordered by revision, then step."""
    reaching = (MetricBlockRow.last_revision > after, MetricBlockRow.first_revision <= upto)
    blocks = _blocks(session, run_id, *reaching)
    within = (MetricsRow.revision > after, MetricsRow.revision <= upto)
    points = joined([*map(unpacked, blocks), points_of(_rows(session, run_id, *within))])
    points = points.at((points.revision > after) & (points.revision <= upto))
    return points.at(points.revision.argsort(kind="stable"))


def _rows(session: Session, run_id: str, *where: ColumnElement[bool]) -> list[Row]:
    found = session.execute(
        select(*_ROW).where(MetricsRow.run_id == run_id, *where).order_by(MetricsRow.step)
    )
    return [Row(*row) for row in found]


def _insert(session: Session, run_id: str, rows: Iterable[Row]) -> None:
    values = [{"run_id": run_id, **row._asdict()} for row in rows]
    if values:
        session.execute(insert(MetricsRow), values)


def _blocks(session: Session, run_id: str, *where: ColumnElement[bool]) -> Sequence[bytes]:
    return session.scalars(
        select(MetricBlockRow.points)
        .where(MetricBlockRow.run_id == run_id, *where)
        .order_by(MetricBlockRow.last_step)
    ).all()


def _unpack_from(session: Session, run_id: str, step: int) -> None:
    """Unpack all blocks that have points at or after `step`."""
    reaching = MetricBlockRow.last_step >= step
    blocks = _blocks(session, run_id, reaching)
    if blocks:
        session.execute(delete(MetricBlockRow).where(MetricBlockRow.run_id == run_id, reaching))
        _insert(session, run_id, joined([*map(unpacked, blocks)]).rows())


def _pack(session: Session, run_id: str, packing: Packing) -> None:
    """Pack the oldest rows into blocks, leaving `rows_kept`."""
    counted = select(func.count()).where(MetricsRow.run_id == run_id)
    spare = (session.scalar(counted) or 0) - packing.rows_kept
    if spare < packing.block_points:
        return
    rows = _rows(session, run_id)
    for start in range(0, spare - packing.block_points + 1, packing.block_points):
        points = points_of(rows[start : start + packing.block_points])
        block = MetricBlockRow(
            run_id=run_id,
            last_step=int(points.step[-1]),
            first_revision=int(points.revision.min()),
            last_revision=int(points.revision.max()),
            points=packed(points),
        )
        session.add(block)
        packed_rows = (MetricsRow.run_id == run_id, MetricsRow.step <= block.last_step)
        session.execute(delete(MetricsRow).where(*packed_rows))
