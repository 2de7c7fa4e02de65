"""Runs keep the settings that they chose, and the kind of device that they trained on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261201"
down_revision = "20261130"


def upgrade() -> None:
    op.add_column("runs", sa.Column("chosen", sa.JSON))
    op.add_column("runs", sa.Column("device_kind", sa.String))
