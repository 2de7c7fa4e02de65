"""A job: the process that trains one run, or several on one pass of the language model.
`python -m backend.jobs.worker <run_id> [<run_id> ...]`.

Started by the supervisor and detached from it: it continues when the server is gone, and writes the
end of its runs into their rows. The supervisor judges only runs whose job could not write.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

from backend import store
from backend.jobs.execution import Terminated, Train, engine, execute, exit_code, raise_terminated
from backend.jobs.logs import log_plainly, logging_into
from backend.jobs.retry import JOB_BUSY_SECONDS, DatabaseRefusedError, when_available
from backend.processes import EXIT_DATABASE_REFUSED, EXIT_DISK_FULL, lower_priority, this_process
from backend.settings import Settings, load_settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.errors import DiskFullError
from sae_engine.interrupt import exit_if_abandoned
from sae_engine.training.member import Member

_log = logging.getLogger(__name__)


def main(run_ids: Sequence[str], *, train: Train = engine) -> int:
    """Train runs of the database; returns the process's exit code."""
    log_plainly()
    signal.signal(signal.SIGTERM, raise_terminated)
    settings = load_settings()
    database = Database(settings.resolved_database_url, busy_seconds=JOB_BUSY_SECONDS)
    members: dict[str, Member] = {}
    try:
        for run_id in run_ids:
            row = when_available(lambda run_id=run_id: _take_over(database, run_id))
            if row is not None:
                members[run_id] = _member(settings, row)
        if not members:
            return 0
        logs = [member.folder.log for member in members.values()]
        with logging_into(logs[1:]):  # the first one receives this process's output
            statuses = execute(database, members, train, process=this_process())
            for run_id, status in zip(members, statuses, strict=True):
                _log.info("run %s %s", run_id, status)
        return exit_code(statuses)
    except Terminated:
        return exit_code(["interrupted"])
    except DiskFullError as error:
        _log.error("%s", error)
        return EXIT_DISK_FULL
    except DatabaseRefusedError as error:
        _log.error("%s", error)
        return EXIT_DATABASE_REFUSED
    finally:
        database.close()


def _take_over(database: Database, run_id: str) -> RunRow | None:
    """Record in a run's row that this process runs it; None if the run is not active any more."""
    pid, created = this_process()
    with database.writing() as session:
        row = store.get_run(session, run_id)
        if store.set_process(session, run_id, pid=pid, created=created, has_begun=True):
            return row
    _log.warning("run %s is %s, or has another process; nothing to do", run_id, row.status)
    return None


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
    code = main(sys.argv[1:])
    exit_if_abandoned(code)
    sys.exit(code)
