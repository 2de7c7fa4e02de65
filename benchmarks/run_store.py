"""Speed of listing runs and of reading and writing curves, with many of both.

    python benchmarks/run_store.py [--runs 1000] [--long 100] [--points 100000] [--folder DIR]
    python benchmarks/run_store.py --long 2 --database-url postgresql://user@/name?host=/socket

Fills a database through `backend.store`: runs with tags, notes and latest metrics, the newest of
them with long curves of twelve metrics per point. Then sends each kind of query to the REST API, in
the same process, `REPEATS` times. Prints the machine and a table of milliseconds.
"""

from __future__ import annotations

import platform
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from _common import parser, seconds
from sqlalchemy import update
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.settings import load_settings
from backend.store.database import Database, open_database
from backend.store.models import RunRow
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord

REPEATS = 40
POINTS_AT_ONCE = 1000
NAMES: tuple[str, ...] = (
    "loss", "fvu", "l0", "auxk_loss", "l1_loss", "grad_norm", "lr", "frac_dead",
    "tokens_per_second", "lm_share", "sae_share", "buffer_share",
)  # fmt: skip


def curve(seed: int, points: int) -> Iterator[list[MetricsRecord]]:
    """Metrics as the engine yields them, in batches: float32 losses, float64 speeds and shares, and
    held-out metrics at every hundredth point.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, points, POINTS_AT_ONCE):
        count = min(POINTS_AT_ONCE, points - start)
        values = rng.random((count, len(NAMES)))
        values[:, :8] = values[:, :8].astype(np.float32)
        records: list[MetricsRecord] = []
        for i, row in enumerate(values.tolist(), start + 1):
            measured = dict(zip(NAMES, row, strict=True))
            if i % 100 == 0:
                measured |= {"eval_fvu": row[0], "eval_l0": 32.0, "ce_delta": row[1]}
            tokens = i * 4096
            records.append(MetricsRecord(step=i, tokens=tokens, time=i * 0.25, values=measured))
        yield records


def fill(database: Database, num_runs: int, num_long: int, num_points: int) -> list[str]:
    """Add the runs; returns the ids of those with long curves."""
    config = resolve_config("tiny", {})
    long: list[str] = []
    for number in range(num_runs):
        with database.writing() as session:
            row = store.add_run(
                session,
                config=config.model_copy(update={"name": f"k study {number}"}),
                tags=[f"k{number % 7}", "layer 2" if number % 2 else "layer 4", f"t{number % 50}"],
                notes="Compared with the one before. " * 10,
                status="running",
            )
            latest = dict.fromkeys(NAMES, number * 7919 % 1000 / 1000)
            store.update_metrics(session, row.id, latest, step=976, total_steps=976)
            if number >= num_runs - num_long:
                long.append(row.id)
    for number, run_id in enumerate(long):
        for records in curve(number, num_points):
            with database.writing() as session:
                store.add_metrics(session, run_id, records)
    with database.writing() as session:
        session.execute(update(RunRow).values(status="finished"))
    return long


def questions(
    client: TestClient, database: Database, long: list[str], num_points: int
) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Kinds of queries: a name, and a function of the number of the repetition."""

    def get(path: str) -> None:
        answer = client.get(f"/api{path}")
        assert answer.status_code == 200, answer.text

    def of(i: int) -> str:
        return long[i % len(long)]

    def read_events(i: int) -> None:
        with database.reading() as session:
            last = store.get_run(session, of(i)).revision
            assert store.metrics_between(session, of(i), last - 1, last)

    def flush(i: int) -> None:
        step = num_points + 1 + i * 10
        with database.writing() as session:
            records = [
                MetricsRecord(step=s, tokens=s, time=s, values=dict.fromkeys(NAMES, 0.5))
                for s in range(step, step + 10)
            ]
            store.add_metrics(session, long[0], records)
            store.update_metrics(session, long[0], records[-1].values, step=step)

    yield "list, the newest 50", lambda _: get("/runs?limit=50")
    yield "list, best FVU", lambda _: get("/runs?limit=50&sort=fvu")
    yield "list, searched", lambda i: get(f"/runs?limit=50&q=study+{i}")
    yield "list, by two tags", lambda i: get(f"/runs?limit=50&tag=k{i % 7}&tag=layer+2")
    yield "tags", lambda _: get("/tags")
    yield "curves, 1,500 points", lambda i: get(f"/runs/{of(i)}/metrics?max_points=1500")
    yield "one curve of them", lambda i: get(f"/runs/{of(i)}/metrics?max_points=1500&keys=fvu")
    yield "the last 20 points", lambda i: get(f"/runs/{of(i)}/metrics?since_step={num_points - 20}")
    yield "events of a revision", read_events
    yield "storing 10 points", flush


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=1000)
    arguments.add_argument("--long", type=int, default=100)
    arguments.add_argument("--points", type=int, default=100_000)
    arguments.add_argument(
        "--folder", type=Path, help="folder of the SQLite database; temporary if unset"
    )
    arguments.add_argument(
        "--database-url", help="URL of an empty database; SQLite in the folder if unset"
    )
    options = arguments.parse_args()
    print(
        f"{platform.machine()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )
    print(f"{options.runs:,} runs, {options.long} of them with {options.points:,} points")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        url = options.database_url or f"sqlite:///{folder}/workbench.sqlite3"
        settings = load_settings(data_dir=folder, database_url=url)
        with open_database(settings.resolved_database_url) as database:
            long: list[str] = []
            taken = seconds(
                lambda: long.extend(fill(database, options.runs, options.long, options.points))
            )
            rate = options.long * options.points / taken
            size = sum(file.stat().st_size for file in Path(folder).glob("*.sqlite3*"))
            print(f"filled in {taken:.0f} s, {rate:,.0f} points/s, {size / 2**20:,.0f} MiB")
            print(f"{'milliseconds':32}{'p50':>10}{'p95':>10}{'first':>10}")
            with TestClient(create_app(settings), "http://127.0.0.1") as client:
                for name, ask in questions(client, database, long, options.points):
                    times = [1000 * seconds(partial(ask, i)) for i in range(REPEATS)]
                    p50, p95 = np.percentile(times, [50, 95])
                    print(f"{name:32}{p50:10.2f}{p95:10.2f}{times[0]:10.2f}")


if __name__ == "__main__":
    main()
