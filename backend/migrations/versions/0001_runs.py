"""Runs and what they report."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
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
        sa.Column("group_id", sa.String),
        sa.Column("device", sa.String),
        sa.Column("idempotency_key", sa.String, unique=True),
        sa.Column("request_digest", sa.String),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("total_tokens", sa.Integer),
        sa.Column("tokens_per_second", sa.Double),
        sa.Column("eta_seconds", sa.Double),
        sa.Column("phase", sa.String),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("error_type", sa.String),
        sa.Column("error_message", sa.Text),
        sa.Column("error_log_tail", sa.Text),
        sa.Column("pid", sa.Integer),
        sa.Column("pid_created", sa.Double),
        sa.Column("force_stop_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "run_tags",
        _run_id(),
        sa.Column("tag", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.UniqueConstraint("run_id", "position"),
    )
    op.create_table(
        "metrics",
        _run_id(),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("values", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "snapshots",
        _run_id(),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("index_tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        _run_id(primary_key=False, index=True),
        sa.Column("step", sa.Integer),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "labels",
        _run_id(),
        sa.Column("feature", sa.Integer, primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("starred", sa.Boolean, nullable=False),
    )


def _run_id(*, primary_key: bool = True, index: bool = False) -> sa.Column[str]:
    run = sa.ForeignKey("runs.id", ondelete="CASCADE")
    return sa.Column("run_id", sa.String, run, primary_key=primary_key, nullable=False, index=index)
