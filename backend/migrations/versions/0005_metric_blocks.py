"""Measurements of long runs are packed into blocks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run = sa.ForeignKey("runs.id", ondelete="CASCADE")
    op.create_table(
        "metric_blocks",
        sa.Column("run_id", sa.String, run, primary_key=True),
        sa.Column("last_step", sa.Integer, primary_key=True),
        sa.Column("first_revision", sa.Integer, nullable=False),
        sa.Column("last_revision", sa.Integer, nullable=False),
        sa.Column("points", sa.LargeBinary, nullable=False),
    )
