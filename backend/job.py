"""A job: the process that trains one run. `python -m backend.job <run_id>`.

Started by the supervisor, detached from it: it goes on when the server is gone and writes its own
end into its row. The supervisor judges only what could not write any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from backend import repository
from backend.db import Database
from backend.settings import load_settings
from backend.shapes import has_checkpoint
from backend.work import Terminated, Train, work
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, StopRequest

NICENESS = 10
EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 143}

_log = logging.getLogger(__name__)


def main(run_id: str, *, train: Train | None = None) -> int:
    """Carry out one run of the database; returns the process's exit code."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    signal.signal(signal.SIGTERM, _terminate)
    settings = load_settings()
    database = Database(settings.resolved_database_url)
    try:
        process = psutil.Process()
        with database.writing() as session:
            row = repository.get_run(session, run_id)
            wanted = repository.set_process(
                session, run_id, pid=process.pid, created=process.create_time()
            )
        if not wanted:
            _log.warning("run %s is %s and not to be worked on", run_id, row.status)
            return 0
        if row.device == "cpu":
            _step_back()
        folder = settings.run_folder(run_id)
        config = RunConfig.model_validate(row.config)
        status = work(
            database,
            run_id,
            config,
            folder,
            train or engine,
            resume=has_checkpoint(folder),
        )
        _log.info("run %s %s", run_id, status)
        return EXIT_CODES[status]
    finally:
        database.close()


def _step_back() -> None:
    """Leave the processor to the pages when they want it."""
    os.nice(NICENESS)
    # A detached job is a session of its own, and where Linux groups processes by session for
    # scheduling, niceness counts only inside the group: the group needs its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def engine(
    config: RunConfig,
    folder: RunFolder,
    *,
    should_stop: Callable[[], StopRequest],
    resume: bool,
) -> Iterator[AnyRecord]:
    """The real engine, imported late: the run is taken on before the seconds that its import
    costs.
    """
    from sae_engine.train import train

    return train(config, folder, should_stop=should_stop, resume=resume)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
