"""A job: the process that trains one run, or several on one pass of the language model.
`python -m backend.jobs.worker <run_id> [<run_id> ...]`.

Started by the supervisor, detached from it: it goes on when the server is gone and writes its own
end into its row. The supervisor judges only what could not write any more.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from backend import store
from backend.jobs.logs import LOG_FORMAT
from backend.jobs.recorder import Task, Terminated, Train, work
from backend.processes import EXIT_DISK_FULL, start_of, step_back
from backend.settings import Settings, load_settings
from backend.store.database import Database
from sae_engine.errors import DiskFullError
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord
from sae_engine.training.member import Member

EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 143}

_log = logging.getLogger(__name__)


def main(run_ids: Sequence[str], *, train: Train | None = None) -> int:
    """Carry out runs of the database; returns the process's exit code, the worst of theirs."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
    signal.signal(signal.SIGTERM, _terminate)
    settings = load_settings()
    database = Database(settings.resolved_database_url)
    try:
        tasks = [
            task for run_id in run_ids if (task := _take_on(database, settings, run_id)) is not None
        ]
        if not tasks:
            return 0
        for task in tasks[1:]:  # the first one's log receives all that this process says
            _log_into(task.folder.log)
        try:
            statuses = work(database, tasks, train or engine)
        except DiskFullError as error:
            _log.error("%s", error)
            return EXIT_DISK_FULL
        for task, status in zip(tasks, statuses, strict=True):
            _log.info("run %s %s", task.run_id, status)
        return max(EXIT_CODES[status] for status in statuses)
    finally:
        database.close()


def _take_on(database: Database, settings: Settings, run_id: str) -> Task | None:
    """Note in a run's row that this process works on it; None if it is no longer wanted."""
    pid = os.getpid()
    with database.writing() as session:
        row = store.get_run(session, run_id)
        wanted = store.set_process(session, run_id, pid=pid, created=start_of(pid))
    if not wanted:
        _log.warning("run %s is %s and not to be worked on", run_id, row.status)
        return None
    if row.device == "cpu":
        step_back(settings.niceness)
    config = RunConfig.model_validate(row.config)
    if row.slot is not None and row.device != "cpu":  # this process sees no other device
        model = config.model.model_copy(update={"device": "cuda"})
        config = config.model_copy(update={"model": model})
    folder = settings.run_folder(run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    return Task(run_id, config, folder, resume=folder.has_checkpoint)


def _log_into(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)


def engine(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
    """The real engine, imported late: the run is taken on before the seconds that its import
    costs.
    """
    from sae_engine.training.loop import train_together

    return train_together(members)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
