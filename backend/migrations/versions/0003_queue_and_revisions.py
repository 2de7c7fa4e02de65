"""The queue's order, slots, alerts, and revisions that events are numbered by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("cloned_from", sa.String))
    op.add_column("runs", sa.Column("slot", sa.String))
    op.add_column("runs", sa.Column("queue_rank", sa.Integer))
    op.add_column("runs", _revision("revision"))
    op.add_column("runs", _revision("status_revision"))
    op.add_column("runs", sa.Column("reported_at", sa.DateTime(timezone=True)))
    op.add_column("metrics", _revision("revision"))
    op.add_column("snapshots", _revision("revision"))
    op.add_column("notices", sa.Column("kind", sa.String))
    op.add_column("notices", _revision("revision"))


def _revision(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")
