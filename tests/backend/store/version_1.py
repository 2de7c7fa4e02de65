"""A database as the first version made it, with rows in every table."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from sae_engine.presets import resolve_config

RUN_ID = "0123456789"

TABLES = """
CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE runs (
    seq INTEGER NOT NULL, id VARCHAR NOT NULL, name VARCHAR NOT NULL, status VARCHAR NOT NULL,
    config JSON NOT NULL, notes TEXT NOT NULL, archived BOOLEAN NOT NULL, group_id VARCHAR,
    device VARCHAR, idempotency_key VARCHAR, request_digest VARCHAR, created_at DATETIME NOT NULL,
    queued_at DATETIME NOT NULL, started_at DATETIME, ended_at DATETIME, step INTEGER NOT NULL,
    total_steps INTEGER, tokens INTEGER NOT NULL, total_tokens INTEGER, tokens_per_second DOUBLE,
    eta_seconds DOUBLE, phase VARCHAR, metrics TEXT NOT NULL, error_type VARCHAR,
    error_message TEXT, error_log_tail TEXT, pid INTEGER, pid_created DOUBLE,
    force_stop_at DATETIME, PRIMARY KEY (seq), UNIQUE (id), UNIQUE (idempotency_key)
);
CREATE INDEX ix_runs_status ON runs (status);
CREATE TABLE run_tags (
    run_id VARCHAR NOT NULL, tag VARCHAR NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (run_id, tag), UNIQUE (run_id, position),
    FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
CREATE TABLE metrics (
    run_id VARCHAR NOT NULL, step INTEGER NOT NULL, tokens INTEGER NOT NULL, time DOUBLE NOT NULL,
    "values" TEXT NOT NULL, PRIMARY KEY (run_id, step),
    FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE snapshots (
    run_id VARCHAR NOT NULL, step INTEGER NOT NULL, tokens INTEGER NOT NULL,
    index_tokens INTEGER NOT NULL, seconds DOUBLE NOT NULL, final BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL, PRIMARY KEY (run_id, step),
    FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
CREATE TABLE notices (
    id INTEGER NOT NULL, run_id VARCHAR NOT NULL, step INTEGER, level VARCHAR NOT NULL,
    message TEXT NOT NULL, created_at DATETIME NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
CREATE INDEX ix_notices_run_id ON notices (run_id);
CREATE TABLE labels (
    run_id VARCHAR NOT NULL, feature INTEGER NOT NULL, label TEXT NOT NULL, notes TEXT NOT NULL,
    starred BOOLEAN NOT NULL, PRIMARY KEY (run_id, feature),
    FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
"""
AT = "2026-11-24 12:33:01.250000"
LATEST = '{"fvu": 0.2, "eval_fvu": 0.125, "l0": NaN, "eval_l0": 32.0, "ce_delta": -0.5}'

RUN = (
    1, RUN_ID, "tiny", "finished", json.dumps(resolve_config("tiny", {}).model_dump(mode="json")),
    "seen", 0, "a-sweep", "cpu", "once", "digest", AT, AT, AT, AT, 976, 976, 499_712, 499_712,
    1000.5, None, None, LATEST, "SomeError", "It broke.", "the log", 42, 1.5, AT,
)  # fmt: skip
ROWS: dict[str, list[tuple[object, ...]]] = {
    "schema_version": [(1,)],
    "runs": [RUN, (2, "abcdef0123", *RUN[2:9], None, *RUN[10:22], "{}", *RUN[23:])],
    "run_tags": [(RUN_ID, "b", 0), (RUN_ID, "a", 1)],
    "metrics": [
        (RUN_ID, 10, 5120, 0.5, '{"fvu":0.5,"l0":NaN}'),
        (RUN_ID, 20, 10_240, 1.0, '{"fvu":0.25}'),
    ],
    "snapshots": [(RUN_ID, 20, 10_240, 50_000, 1.5, 1, AT)],
    "notices": [(1, RUN_ID, None, "info", "hello", AT), (2, RUN_ID, 7, "warning", "look", AT)],
    "labels": [(RUN_ID, 3, "names", "seen twice", 1)],
}


def make_version_1(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executescript(TABLES)
        for table, rows in ROWS.items():
            places = ",".join("?" * len(rows[0]))
            raw.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
