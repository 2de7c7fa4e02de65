"""Runs name the job that runs them; the database of a cluster names its data folder."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261130"
down_revision = "20261129"


def upgrade() -> None:
    op.create_table("data_folder", sa.Column("id", sa.String, primary_key=True))
    op.add_column("runs", sa.Column("job", sa.String))
    # Active runs have a process of the earlier version, which several runs may share.
    op.execute(
        "UPDATE runs SET job = COALESCE(CAST(pid AS VARCHAR) || '-' || CAST(pid_created AS VARCHAR)"
        ", id) WHERE status IN ('running', 'stopping')"
    )
