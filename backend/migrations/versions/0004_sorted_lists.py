"""Lists of runs are sorted by their metrics; counts of tokens may exceed 32 bits."""

from __future__ import annotations

import json
import math

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

SORTED_BY = {"fvu": ("eval_fvu", "fvu"), "l0": ("l0", "eval_l0"), "ce_delta": ("ce_delta",)}
"""Column to the metrics of which it holds the first that was measured, if it is finite."""
TOKEN_COUNTS = {
    "runs": ("tokens", "total_tokens"),
    "metrics": ("tokens",),
    "snapshots": ("tokens", "index_tokens"),
    "label_jobs": ("prompt_tokens", "completion_tokens"),
}


def upgrade() -> None:
    # Tables that became those of revision 0003 before there were revisions lack this index.
    op.create_index("ix_runs_group_id", "runs", ["group_id"], if_not_exists=True)
    if op.get_bind().dialect.name == "postgresql":  # SQLite's integers have 64 bits already
        for table, columns in TOKEN_COUNTS.items():
            for column in columns:
                op.alter_column(table, column, type_=sa.BigInteger)
    for name in SORTED_BY:
        op.add_column("runs", sa.Column(name, sa.Double))
    _copy_latest_metrics(op.get_bind())


def _copy_latest_metrics(connection: sa.Connection) -> None:
    columns = [sa.Column(name, sa.Double) for name in SORTED_BY]
    runs = sa.Table(
        "runs", sa.MetaData(), sa.Column("seq", sa.Integer), sa.Column("metrics", sa.Text), *columns
    )
    for seq, metrics in connection.execute(sa.select(runs.c.seq, runs.c.metrics)).all():
        latest: dict[str, float] = json.loads(metrics)
        values: dict[str, float] = {}
        for column, names in SORTED_BY.items():
            value = next((latest[name] for name in names if name in latest), math.nan)
            if math.isfinite(value):
                values[column] = value
        if values:
            connection.execute(sa.update(runs).where(runs.c.seq == seq).values(values))
