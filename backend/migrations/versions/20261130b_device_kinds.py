"""Runs name the kind of GPU that they trained on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261130b"
down_revision = "20261130"


def upgrade() -> None:
    op.add_column("runs", sa.Column("device_kind", sa.String))
