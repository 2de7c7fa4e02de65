"""The tables. Weights, checkpoints, feature indexes and logs are in the run's folder instead."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from backend.processes import ProcessId


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time, even on databases that store no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


TokenCount = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"))]
"""A 64-bit integer, as every integer of SQLite is."""


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime, dict[str, Any]: JSON}


class RunRow(Base):
    """A run: its configuration, state, progress and end."""

    __tablename__ = "runs"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    """Order of creation; cursors of lists refer to it."""
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    config: Mapped[dict[str, Any]]
    chosen: Mapped[dict[str, Any] | None]
    """By path, the values of settings that `config` leaves to the run; null before it has chosen.
    """
    notes: Mapped[str] = mapped_column(Text, default="")
    archived: Mapped[bool] = mapped_column(default=False)
    group_id: Mapped[str | None] = mapped_column(index=True)
    cloned_from: Mapped[str | None]
    device: Mapped[str | None]
    slot: Mapped[str | None]
    """Slot that the supervisor chose; null for a run in a terminal."""
    device_kind: Mapped[str | None]
    """Of its last slot, such as the name of a GPU; a run that is queued again prefers the same one,
    on which its bits stay the same.
    """
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str | None]

    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    queue_rank: Mapped[int | None]
    """Order in which queued runs start; null unless queued."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    tokens: Mapped[TokenCount] = mapped_column(default=0)
    total_tokens: Mapped[TokenCount | None]
    tokens_per_second: Mapped[float | None]
    eta_seconds: Mapped[float | None]
    """Remaining time of the training when `reported_at` was written; see `remaining_seconds`."""
    phase: Mapped[str | None]
    metrics: Mapped[str] = mapped_column(Text, default="{}")
    """Latest value of each metric, as JSON extended by NaN and infinities."""
    fvu: Mapped[float | None]
    """Lists are sorted by this and the next two: held-out once measured; null if missing or not
    finite.
    """
    l0: Mapped[float | None]
    ce_delta: Mapped[float | None]

    error_type: Mapped[str | None]
    error_message: Mapped[str | None] = mapped_column(Text)
    error_log_tail: Mapped[str | None] = mapped_column(Text)

    job: Mapped[str | None]
    """The job that runs it; every claim names a new one, and what an earlier one writes is refused.
    """
    pid: Mapped[int | None]
    pid_created: Mapped[float | None]
    """`processes.start_of(pid)`: distinguishes it from a later process with the same number."""
    force_stop_at: Mapped[datetime | None]

    revision: Mapped[int] = mapped_column(default=0)
    """Counts the transactions that reported something about this run; numbers its events."""
    status_revision: Mapped[int] = mapped_column(default=0)
    """Revision of the last change of `status`."""
    reported_at: Mapped[datetime | None]
    """Time of the last write by its process."""

    alerts: Mapped[list[NoticeRow]] = relationship(
        primaryjoin="and_(NoticeRow.run_id == RunRow.id, NoticeRow.kind.is_not(None))",
        order_by="NoticeRow.id",
        viewonly=True,
        lazy="selectin",
    )
    tags: Mapped[list[TagRow]] = relationship(
        order_by="TagRow.position", cascade="all, delete-orphan", lazy="selectin"
    )

    @property
    def process(self) -> ProcessId | None:
        """The job's process; None before it has taken the run."""
        if self.pid is None or self.pid_created is None:
            return None
        return ProcessId(self.pid, self.pid_created)

    @property
    def has_begun(self) -> bool:
        """Whether its process has reported anything, if only that it has started."""
        return self.reported_at != self.started_at

    def remaining_seconds(self, at: datetime) -> float | None:
        """`eta_seconds` less the time since it was reported; None if unknown."""
        if self.eta_seconds is None or self.reported_at is None:
            return self.eta_seconds
        return max(0.0, self.eta_seconds - max(0.0, (at - self.reported_at).total_seconds()))

    @property
    def latest_metrics(self) -> dict[str, float]:
        """`metrics`, parsed."""
        return json.loads(self.metrics)


class DataFolderRow(Base):
    """The data folder that belongs to the database of a cluster; no row elsewhere."""

    __tablename__ = "data_folder"

    id: Mapped[str] = mapped_column(primary_key=True)


class TagRow(Base):
    __tablename__ = "run_tags"
    __table_args__ = (UniqueConstraint("run_id", "position"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]


class MetricsRow(Base):
    """Measurements of one of a run's newest steps."""

    __tablename__ = "metrics"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[TokenCount]
    time: Mapped[float]
    revision: Mapped[int] = mapped_column(default=0)
    values: Mapped[str] = mapped_column(Text)
    """Metric name to value, as JSON extended by NaN and infinities."""


class MetricBlockRow(Base):
    """Consecutive points of a run older than its `MetricsRow`s, packed."""

    __tablename__ = "metric_blocks"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    last_step: Mapped[int] = mapped_column(primary_key=True)
    first_revision: Mapped[int]
    last_revision: Mapped[int]
    points: Mapped[bytes]
    """See `metric_points`."""


class SnapshotRow(Base):
    """A feature index published in the run's folder."""

    __tablename__ = "snapshots"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[TokenCount]
    index_tokens: Mapped[TokenCount]
    seconds: Mapped[float]
    final: Mapped[bool]
    revision: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]


class NoticeRow(Base):
    """A message from a run to its users."""

    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    step: Mapped[int | None]
    level: Mapped[str]
    kind: Mapped[str | None]
    """Kind of alert; null for other messages."""
    message: Mapped[str] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]


class LabelRow(Base):
    """Label, notes and star of one feature of a run."""

    __tablename__ = "labels"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    feature: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(Text)
    notes: Mapped[str] = mapped_column(Text)
    starred: Mapped[bool]

    author: Mapped[str]
    """Of the label: `person` or `model`."""
    model: Mapped[str | None]
    prompt_version: Mapped[str | None]
    written_at: Mapped[datetime]
    score: Mapped[str | None] = mapped_column(Text)
    """A `DetectionScore` as JSON."""


class LabelJobRow(Base):
    """A job that labels some features of a run automatically."""

    __tablename__ = "label_jobs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    status: Mapped[str] = mapped_column(index=True)
    snapshot: Mapped[int]
    model: Mapped[str]
    total: Mapped[int]
    labeled: Mapped[int] = mapped_column(default=0)
    kept: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    calls: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[TokenCount] = mapped_column(default=0)
    completion_tokens: Mapped[TokenCount] = mapped_column(default=0)
    problem: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    pid: Mapped[int]
    pid_created: Mapped[float]
    """Of the server that runs the job, as in `RunRow`."""
