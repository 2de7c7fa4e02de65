"""How long many jobs that train at the same time wait for the database.

    python benchmarks/many_writers.py --database-url postgresql://user@/name?host=/socket
        [--writers 100] [--batch-seconds 2] [--poll-seconds 0.25] [--seconds 60]

Every writer is a process with its own run, as a job is, but on this machine, which has to be quick
enough for all of them. It measures twelve metrics ten times a second, asks for stop requests every
`--poll-seconds`, and stores through `Recorder`. The server needs two connections for each: start
it with `-c max_connections=250`. Prints the machine with its load, the writes per second, how long
a write takes, and the share of the writers' time that writing takes.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _common import parser
from sqlalchemy.orm import Session

from backend import store
from backend.jobs.recorder import Recorder
from backend.jobs.worker import pace_on
from backend.store.database import Database, open_database
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.member import Member

STEP_SECONDS = 0.1
NUM_METRICS = 12
WARM_UP_SECONDS = 20.0
"""In which the writers start, and nothing is measured."""


class TimedDatabase(Database):
    """Notes how long each write took, with the wait for the other writers."""

    def __init__(self, url: str, writes: list[float]) -> None:
        super().__init__(url)
        self._writes = writes

    @contextmanager
    def writing(self) -> Generator[Session]:
        began = time.monotonic()
        with super().writing() as session:
            yield session
        self._writes.append(time.monotonic() - began)


def write(
    url: str,
    run_id: str,
    batch_seconds: float,
    poll_seconds: float,
    measured_from: float,
    until: float,
) -> list[float]:
    """Report measurements of a run until a time; returns the seconds that each write took."""
    values = {f"metric_{i}": 0.1 * i for i in range(NUM_METRICS)}
    writes: list[float] = []
    with TemporaryDirectory() as folder, closing(TimedDatabase(url, writes)) as database:
        member = Member(resolve_config("tiny", {}), RunFolder(Path(folder)))
        recorder = Recorder(database, run_id, member, job=run_id, batch_seconds=batch_seconds)
        time.sleep(batch_seconds * (hash(run_id) % 100) / 100)  # not all at the same time
        next_poll = 0.0
        step = 0
        while (began := time.monotonic()) < until:
            step += 1
            recorder.record(MetricsRecord(step=step, tokens=step, time=began, values=values))
            if began >= next_poll:
                next_poll = began + poll_seconds
                with database.reading() as session:
                    store.stop_requests(session, [run_id], run_id)
            time.sleep(max(0.0, began + STEP_SECONDS - time.monotonic()))
            if began < measured_from:
                writes.clear()
    return writes


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--database-url", required=True)
    arguments.add_argument("--writers", type=int, default=100)
    arguments.add_argument("--batch-seconds", type=float, default=pace_on("a node").batch_seconds)
    arguments.add_argument("--poll-seconds", type=float, default=pace_on("a node").poll_seconds)
    arguments.add_argument("--seconds", type=float, default=60.0)
    options = arguments.parse_args()
    config = resolve_config("tiny", {})
    run_ids: list[str] = []
    with open_database(options.database_url) as database, database.writing() as session:
        for _ in range(options.writers):
            row = store.add_run(session, config=config, status="running")
            row.job = row.id
            run_ids.append(row.id)
    measured_from = time.monotonic() + WARM_UP_SECONDS
    until = measured_from + options.seconds
    url, batch, poll = options.database_url, options.batch_seconds, options.poll_seconds
    work = [(url, run_id, batch, poll, measured_from, until) for run_id in run_ids]
    with multiprocessing.get_context("fork").Pool(options.writers) as pool:
        found = pool.starmap(write, work, chunksize=1)
    writes = np.array([taken for each in found for taken in each])
    p50, p99 = np.percentile(writes, [50, 99])
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, Python {platform.python_version()}, load {load:.0f}")
    print(
        f"{options.writers} writers, a batch every {batch:g} s, a poll every {poll:g} s: "
        f"{len(writes) / options.seconds:.0f} writes/s, p50 {1000 * p50:.0f} ms, "
        f"p99 {1000 * p99:.0f} ms, longest {1000 * writes.max():.0f} ms, "
        f"{writes.sum() / options.seconds / options.writers:.2%} of the writers' time"
    )


if __name__ == "__main__":
    main()
