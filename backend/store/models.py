"""The tables. Weights, checkpoints, feature indexes and logs are not here but in the run's
folder.
"""

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


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time, also on databases that keep no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


TokenCount = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"))]
"""More than 32 bits hold; SQLite's integers have 64."""


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime, dict[str, Any]: JSON}


class RunRow(Base):
    """A run: what was asked, how it stands, how it ended."""

    __tablename__ = "runs"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    """Order of creation; pages of the list end at one."""
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    config: Mapped[dict[str, Any]]
    notes: Mapped[str] = mapped_column(Text, default="")
    archived: Mapped[bool] = mapped_column(default=False)
    group_id: Mapped[str | None] = mapped_column(index=True)
    cloned_from: Mapped[str | None]
    device: Mapped[str | None]
    slot: Mapped[str | None]
    """Where the supervisor put it; null for a run in somebody's terminal."""
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str | None]

    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    queue_rank: Mapped[int | None]
    """Waiting runs are started in this order; null is before all others."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    tokens: Mapped[TokenCount] = mapped_column(default=0)
    total_tokens: Mapped[TokenCount | None]
    tokens_per_second: Mapped[float | None]
    eta_seconds: Mapped[float | None]
    phase: Mapped[str | None]
    metrics: Mapped[str] = mapped_column(Text, default="{}")
    """Latest value of each metric, as JSON that also has NaN and infinities."""
    fvu: Mapped[float | None]
    """What lists are sorted by, as are the next two: held out once that is measured; null where
    there is none or it is not finite.
    """
    l0: Mapped[float | None]
    ce_delta: Mapped[float | None]

    error_type: Mapped[str | None]
    error_message: Mapped[str | None] = mapped_column(Text)
    error_log_tail: Mapped[str | None] = mapped_column(Text)

    pid: Mapped[int | None]
    pid_created: Mapped[float | None]
    """`processes.start_of` it: tells it from a later one with its number."""
    force_stop_at: Mapped[datetime | None]

    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    """Counts the transactions that told something of this run; events are numbered by it."""
    status_revision: Mapped[int] = mapped_column(default=0, server_default="0")
    """When `status` changed last."""
    reported_at: Mapped[datetime | None]
    """When its process wrote something last."""

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
    def latest_metrics(self) -> dict[str, float]:
        """`metrics`, parsed."""
        return json.loads(self.metrics)


class TagRow(Base):
    __tablename__ = "run_tags"
    __table_args__ = (UniqueConstraint("run_id", "position"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]


class MetricsRow(Base):
    """What was measured at one of a run's last steps."""

    __tablename__ = "metrics"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[TokenCount]
    time: Mapped[float]
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    values: Mapped[str] = mapped_column(Text)
    """Metric name to value, as JSON that also has NaN and infinities."""


class MetricBlockRow(Base):
    """Consecutive points of a run that are older than its `MetricsRow`s, packed."""

    __tablename__ = "metric_blocks"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    last_step: Mapped[int] = mapped_column(primary_key=True)
    first_revision: Mapped[int]
    last_revision: Mapped[int]
    points: Mapped[bytes]
    """See `metric_points`."""


class SnapshotRow(Base):
    """A feature index that was published in the run's folder."""

    __tablename__ = "snapshots"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    tokens: Mapped[TokenCount]
    index_tokens: Mapped[TokenCount]
    seconds: Mapped[float]
    final: Mapped[bool]
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime]


class NoticeRow(Base):
    """Something a run wanted people to know."""

    __tablename__ = "notices"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    step: Mapped[int | None]
    level: Mapped[str]
    kind: Mapped[str | None]
    """What it is an alert about; null for other messages."""
    message: Mapped[str] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime]


class LabelRow(Base):
    """What a person wrote about one feature of a run, or a model proposed."""

    __tablename__ = "labels"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    feature: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(Text)
    notes: Mapped[str] = mapped_column(Text)
    starred: Mapped[bool]

    author: Mapped[str | None]
    """Of the label: `person` or `model`; null for a person's of before this was noted."""
    model: Mapped[str | None]
    prompt_version: Mapped[str | None]
    written_at: Mapped[datetime | None]
    score: Mapped[str | None] = mapped_column(Text)
    """A `DetectionScore` as JSON."""


class LabelJobRow(Base):
    """The automatic labeling of some features of a run."""

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
    """Of the server that does it, as in `RunRow`."""
