"""Runs keep the values of settings that they chose themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261201"
down_revision = "20261130"


def upgrade() -> None:
    op.add_column("runs", sa.Column("chosen", sa.JSON))
