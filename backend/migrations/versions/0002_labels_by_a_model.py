"""Where a label comes from, and the jobs that make labels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("labels", sa.Column("author", sa.String))
    op.add_column("labels", sa.Column("model", sa.String))
    op.add_column("labels", sa.Column("prompt_version", sa.String))
    op.add_column("labels", sa.Column("written_at", sa.DateTime(timezone=True)))
    op.add_column("labels", sa.Column("score", sa.Text))
    run = sa.ForeignKey("runs.id", ondelete="CASCADE")
    op.create_table(
        "label_jobs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String, run, nullable=False, index=True),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("snapshot", sa.Integer, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("labeled", sa.Integer, nullable=False),
        sa.Column("kept", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("problem", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_created", sa.Double, nullable=False),
    )
