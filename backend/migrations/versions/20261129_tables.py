"""The first tables: runs, what they report, labels, and the jobs that label."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "20261129"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("archived", sa.Boolean, nullable=False),
        sa.Column("group_id", sa.String, index=True),
        sa.Column("cloned_from", sa.String),
        sa.Column("device", sa.String),
        sa.Column("slot", sa.String),
        sa.Column("idempotency_key", sa.String, unique=True),
        sa.Column("request_digest", sa.String),
        _time("created_at"),
        _time("queued_at"),
        sa.Column("queue_rank", sa.Integer),
        _time("started_at", nullable=True),
        _time("ended_at", nullable=True),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer),
        _tokens("tokens"),
        _tokens("total_tokens", nullable=True),
        sa.Column("tokens_per_second", sa.Double),
        sa.Column("eta_seconds", sa.Double),
        sa.Column("phase", sa.String),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("fvu", sa.Double),
        sa.Column("l0", sa.Double),
        sa.Column("ce_delta", sa.Double),
        sa.Column("error_type", sa.String),
        sa.Column("error_message", sa.Text),
        sa.Column("error_log_tail", sa.Text),
        sa.Column("pid", sa.Integer),
        sa.Column("pid_created", sa.Double),
        _time("force_stop_at", nullable=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("status_revision", sa.Integer, nullable=False),
        _time("reported_at", nullable=True),
    )
    op.create_table(
        "run_tags",
        _run_id(primary_key=True),
        sa.Column("tag", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.UniqueConstraint("run_id", "position"),
    )
    op.create_table(
        "metrics",
        _run_id(primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        _tokens("tokens"),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("values", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "metric_blocks",
        _run_id(primary_key=True),
        sa.Column("last_step", sa.Integer, primary_key=True),
        sa.Column("first_revision", sa.Integer, nullable=False),
        sa.Column("last_revision", sa.Integer, nullable=False),
        sa.Column("points", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "snapshots",
        _run_id(primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        _tokens("tokens"),
        _tokens("index_tokens"),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        _time("created_at"),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        _run_id(index=True),
        sa.Column("step", sa.Integer),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("kind", sa.String),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        _time("created_at"),
    )
    op.create_table(
        "labels",
        _run_id(primary_key=True),
        sa.Column("feature", sa.Integer, primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("starred", sa.Boolean, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("model", sa.String),
        sa.Column("prompt_version", sa.String),
        _time("written_at"),
        sa.Column("score", sa.Text),
    )
    op.create_table(
        "label_jobs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        _run_id(index=True),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("snapshot", sa.Integer, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("labeled", sa.Integer, nullable=False),
        sa.Column("kept", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        _tokens("prompt_tokens"),
        _tokens("completion_tokens"),
        sa.Column("problem", sa.Text),
        _time("created_at"),
        _time("ended_at", nullable=True),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_created", sa.Double, nullable=False),
    )


def _run_id(*, primary_key: bool = False, index: bool = False) -> sa.Column[str]:
    run = sa.ForeignKey("runs.id", ondelete="CASCADE")
    return sa.Column("run_id", sa.String, run, primary_key=primary_key, nullable=False, index=index)


def _tokens(name: str, *, nullable: bool = False) -> sa.Column[int]:
    type_ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column(name, type_, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
