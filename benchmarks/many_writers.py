"""How long many jobs that train at the same time wait for the database.

    python benchmarks/many_writers.py --database-url postgresql://user@/name?host=/socket
        [--writers 100] [--batch-seconds 2] [--seconds 60] [--processes 4]

Every writer is a thread with its own run and connections, spread over some processes. It measures
twelve metrics ten times a second, as training does, asks for stop requests four times a second, and
stores through `Recorder`. The server needs two connections for each writer (`max_connections = 250`).
Prints the machine, the writes per second, the time that a write takes, and the share of the
writers' time that writing takes.
"""

from __future__ import annotations

import multiprocessing
import platform
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _common import parser
from sqlalchemy.orm import Session

from backend import store
from backend.jobs.execution import POLL_SECONDS
from backend.jobs.recorder import Recorder
from backend.store.database import Database, open_database
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord
from sae_engine.training.member import Member

STEP_SECONDS = 0.1
NUM_METRICS = 12


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


def write(url: str, run_id: str, batch_seconds: float, until: float, writes: list[float]) -> None:
    """Report measurements of a run until a time; adds the seconds that each write took."""
    values = {f"metric_{i}": 0.1 * i for i in range(NUM_METRICS)}
    with TemporaryDirectory() as folder, closing(TimedDatabase(url, writes)) as database:
        member = Member(resolve_config("tiny", {}), RunFolder(Path(folder)))
        recorder = Recorder(database, run_id, member, job=run_id, batch_seconds=batch_seconds)
        time.sleep(np.random.default_rng().random() * batch_seconds)  # not all at the same time
        next_poll = 0.0
        step = 0
        while (began := time.monotonic()) < until:
            step += 1
            measured = MetricsRecord(step=step, tokens=step, time=began, values=values)
            recorder.record(measured)
            ended = time.monotonic()
            if ended >= next_poll:
                next_poll = ended + POLL_SECONDS
                with database.reading() as session:
                    store.stop_requests(session, [run_id], run_id)
            time.sleep(max(0.0, began + STEP_SECONDS - time.monotonic()))


def write_all(
    url: str, run_ids: Sequence[str], batch_seconds: float, seconds: float
) -> list[float]:
    """Writers of some runs in this process, as threads; the seconds that each write took."""
    writes: list[float] = []
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=write, args=(url, run_id, batch_seconds, until, writes))
        for run_id in run_ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return writes


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--database-url", required=True)
    arguments.add_argument("--writers", type=int, default=100)
    arguments.add_argument("--batch-seconds", type=float, default=2.0)
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--processes", type=int, default=4)
    options = arguments.parse_args()
    config = resolve_config("tiny", {})
    run_ids: list[str] = []
    with open_database(options.database_url) as database, database.writing() as session:
        for _ in range(options.writers):
            row = store.add_run(session, config=config, status="running")
            row.job = row.id
            run_ids.append(row.id)
    parts = [run_ids[i :: options.processes] for i in range(options.processes)]
    work = [(options.database_url, part, options.batch_seconds, options.seconds) for part in parts]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        writes = np.array([taken for part in pool.starmap(write_all, work) for taken in part])
    p50, p99 = np.percentile(writes, [50, 99])
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(
        f"{options.writers} writers, a batch every {options.batch_seconds:g} s: "
        f"{len(writes) / options.seconds:.0f} writes/s, p50 {1000 * p50:.0f} ms, "
        f"p99 {1000 * p99:.0f} ms, longest {1000 * writes.max():.0f} ms, "
        f"{writes.sum() / options.seconds / options.writers:.2%} of the writers' time"
    )


if __name__ == "__main__":
    main()
