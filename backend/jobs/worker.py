"""A job: the process that trains one run, or several on one pass of the language model.
`python -m backend.jobs.worker <job> [<node of a cluster>]`.

Started by the supervisor's executor and detached from it: it continues when the server is gone, and
writes the end of its runs into their rows. The supervisor ends only runs whose job could not.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from backend import store
from backend.jobs.execution import (
    LOCAL,
    Pace,
    Terminated,
    Train,
    engine,
    execute,
    exit_code,
    raise_terminated,
)
from backend.jobs.logs import log_plainly, logging_into, print_into
from backend.jobs.retry import JOB_BUSY_SECONDS, DatabaseRefusedError, when_available
from backend.jobs.shared_folder import UnsharedFolderError, check_folder
from backend.processes import EXIT_DATABASE_REFUSED, EXIT_DISK_FULL, lower_priority, this_process
from backend.settings import Settings, load_settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.errors import DiskFullError
from sae_engine.interrupt import exit_if_abandoned
from sae_engine.training.member import Member

_log = logging.getLogger(__name__)


def main(job: str, node: str = "", *, train: Train = engine) -> int:
    """Train the runs that were claimed for a job; returns the process's exit code."""
    log_plainly()
    signal.signal(signal.SIGTERM, raise_terminated)
    settings = load_settings()
    if node and settings.database_url is None:
        print(
            f"SAE_WORKBENCH_DATABASE_URL is not set on the machine {node}; set it before `ray "
            "start` there.",
            file=sys.stderr,
        )
        return os.EX_CONFIG
    database = Database(settings.resolved_database_url, busy_seconds=JOB_BUSY_SECONDS)
    try:
        if node:
            when_available(lambda: check_folder(database, settings.data_dir, node))
        rows = when_available(lambda: _take_over(database, job))
        if not rows:
            print(
                f"The database has no runs for job {job}; they may have been reassigned.",
                file=sys.stderr,
            )
            return os.EX_NOINPUT
        if node:
            print_into(settings.run_folder(rows[0].id).log)
        members = {row.id: _member(settings, row) for row in rows}
        logs = [member.folder.log for member in members.values()]
        with logging_into(logs[1:]):  # the first one receives this process's output
            statuses = execute(database, members, train, job=job, pace=pace_on(node))
            for run_id, status in zip(members, statuses, strict=True):
                _log.info("run %s %s", run_id, status)
        return exit_code(statuses)
    except Terminated:
        return exit_code(["interrupted"])
    except UnsharedFolderError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    except DiskFullError as error:
        _log.error("%s", error)
        return EXIT_DISK_FULL
    except DatabaseRefusedError as error:
        _log.error("%s", error)
        return EXIT_DATABASE_REFUSED
    finally:
        database.close()


def pace_on(node: str) -> Pace:
    """In a cluster, many jobs share one database."""
    return Pace(batch_seconds=2.0, poll_seconds=1.0) if node else LOCAL


def _take_over(database: Database, job: str) -> Sequence[RunRow]:
    with database.writing() as session:
        return store.take_over(session, job, this_process())


def _member(settings: Settings, row: RunRow) -> Member:
    config = store.config_of(row)
    if row.device == "cpu":
        lower_priority(settings.niceness)
    elif row.slot is not None:  # the only device that this process sees
        model = config.model.model_copy(update={"device": "cuda"})
        config = config.model_copy(update={"model": model})
    folder = settings.run_folder(row.id)
    folder.path.mkdir(parents=True, exist_ok=True)
    return Member(config, folder, resume=folder.has_checkpoint)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    exit_if_abandoned(code)
    sys.exit(code)
