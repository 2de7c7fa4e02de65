"""Runs the engine in this process and records how each run ended, even after an error or a signal.

Used by a job's process and by `sae-workbench train`.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from backend import store
from backend.jobs.environment import record_environment, this_environment
from backend.jobs.load import ProcessLoad
from backend.jobs.logs import LOG_TAIL_LINES, tail
from backend.jobs.recorder import BATCH_SECONDS, Recorder
from backend.jobs.retry import DatabaseRefusedError, when_available
from backend.jobs.run_log import RunLog
from backend.store.database import Database, DatabaseGoneError, is_unavailable
from sae_engine.errors import UserError
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    FailureRecord,
    StopRequest,
)
from sae_engine.schema.runs import RunStatus
from sae_engine.training.member import Member

REPORT_SECONDS = 15.0
"""How often a job tells supervisors on other machines that it is alive."""
LONGEST_BATCH_SECONDS = 2.0
"""Limit of the time between writes of one run; it grows with the number of runs on the pass."""
LAST_WRITE_SECONDS = 2.0
"""How long a process that was asked to exit waits for an unavailable database."""

_STRENGTH = list(StopRequest).index
_log = logging.getLogger(__name__)

Train = Callable[[Sequence[Member]], Generator[tuple[int, AnyRecord]]]
"""Signature of `sae_engine.training.loop.train_together`."""


class Terminated(BaseException):
    """A signal told the process to end at once; the text names the signal."""


def raise_terminated(number: int, _frame: FrameType | None) -> None:
    """Signal handler that raises `Terminated`."""
    raise Terminated(signal.Signals(number).name)


def engine(members: Sequence[Member]) -> Generator[tuple[int, AnyRecord]]:
    """The real engine; imports torch only when it is called, which takes seconds."""
    from sae_engine.training.loop import train_together

    return train_together(members)


def exit_code(statuses: Sequence[RunStatus], number: signal.Signals = signal.SIGTERM) -> int:
    """Exit code of a process, given how its runs ended; `number` is the signal, if any."""
    codes = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 128 + number}
    return max((codes[status] for status in statuses), default=0)


class Pace(NamedTuple):
    """How often a job uses the database."""

    batch_seconds: float = BATCH_SECONDS
    """Time between writes of the measurements of a run alone on its pass."""
    poll_seconds: float = 0.25
    """Time between looks for stop requests."""


LOCAL = Pace()


def no_request() -> StopRequest:
    return StopRequest.NONE


def execute(
    database: Database,
    members: Mapping[str, Member],
    train: Train,
    *,
    job: str,
    asked: Callable[[], StopRequest] = no_request,
    on_record: Callable[[int, AnyRecord], None] = lambda _number, _record: None,
    pace: Pace = LOCAL,
) -> list[RunStatus]:
    """Run the engine to its end, store what it yields, and return how each run ended.

    The `members`, by run id, share a pass of the language model; an error that ends the pass ends
    all runs still on it. `asked` is a stop request from this process, besides those in the
    database. A run that no longer belongs to the `job` ends at once and stores nothing. While the
    database is unavailable, training waits. Raises `DiskFullError` or `DatabaseRefusedError` if not
    even the ends of the runs can be stored.
    """
    run_ids = list(members)
    batch_seconds = min(pace.batch_seconds * len(members), LONGEST_BATCH_SECONDS)
    recorders = [
        Recorder(
            database,
            run_id,
            member,
            job=job,
            batch_seconds=batch_seconds,
            load=ProcessLoad(),
        )
        for run_id, member in members.items()
    ]
    logs = [RunLog(run_id) for run_id in run_ids]
    requests = StopRequests(database, run_ids, asked, job, pace)
    ended: dict[int, RunStatus] = {}

    def fail(number: int, status: RunStatus, kind: str, message: str) -> None:
        ended[number] = status
        log_tail = tail(members[run_ids[number]].folder.log, LOG_TAIL_LINES)
        recorders[number].fail(status, kind, message, log_tail)

    def fail_rest(status: RunStatus, kind: str, message: str) -> None:
        for number in range(len(run_ids)):
            if number not in ended:
                fail(number, status, kind, message)

    try:
        environment = this_environment()
        for member in members.values():
            record_environment(member.folder, environment)
        records = train(
            [m._replace(should_stop=partial(requests.of, i)) for i, m in members.items()]
        )
        for number, record in records:
            requests.store_asked()
            logs[number].write(record)
            if isinstance(record, FailureRecord):
                _log.error("run %s failed: %s", run_ids[number], record.message)
                fail(number, "failed", record.error_type, record.message)
            else:
                recorders[number].record(record)
            if recorders[number].is_superseded and all(r.look_for_successor() for r in recorders):
                # A checkpoint follows the record of a phase. The job that has the runs now might
                # resume from it without the measurements before it, which were just refused.
                records.close()
                return ["stopped" for _ in run_ids]
            if isinstance(record, EndRecord):
                ended[number] = record.reason
            for recorder in recorders:
                recorder.store_waiting()
            on_record(number, record)
        if len(ended) < len(run_ids):
            raise RuntimeError("the engine stopped without reporting how the run ended")
    except DatabaseRefusedError:
        raise  # nothing can be stored
    except UserError as error:
        _log.exception("the run failed")
        fail_rest("failed", type(error).__name__, str(error))
    except (Terminated, KeyboardInterrupt) as error:
        name = str(error) or "SIGINT"
        _log.warning("interrupted by %s", name)
        for recorder in recorders:
            recorder.deadline = time.monotonic() + LAST_WRITE_SECONDS
        try:
            fail_rest("interrupted", name, f"The run was interrupted by {name}.")
        except DBAPIError as unavailable:
            _log.error("cannot record that the run was interrupted: %s", unavailable.orig)
            for number in range(len(run_ids)):
                ended.setdefault(number, "interrupted")
    except Exception as error:
        _log.exception("the run failed")
        first_line = next(iter(str(error).splitlines()), "")[:500]
        fail_rest("failed", type(error).__name__, first_line or "No reason given; see the log.")
    return [ended[number] for number in range(len(run_ids))]


class StopRequests:
    """Stop requests for the runs on a pass: from the database and from this process."""

    def __init__(
        self,
        database: Database,
        run_ids: Sequence[str],
        asked: Callable[[], StopRequest],
        job: str,
        pace: Pace = LOCAL,
    ) -> None:
        self._job = job
        self._poll_seconds = pace.poll_seconds
        self._database = database
        self._asked = asked
        self._stored = StopRequest.NONE
        self._requests = dict.fromkeys(run_ids, StopRequest.NONE)
        self._next_poll = 0.0
        self._next_report = time.monotonic() + REPORT_SECONDS

    def of(self, run_id: str) -> StopRequest:
        """The stronger request; cheap enough to be called in every step, and called in long work,
        so that a job also reports from here that it is alive.
        """
        asked, at = self._asked(), time.monotonic()
        if asked is not StopRequest.FORCE and at >= self._next_poll:
            self._next_poll = at + self._poll_seconds
            self._poll()
        return max(self._requests[run_id], asked, key=_STRENGTH)

    def _poll(self) -> None:
        """Read all runs' requests; if the database is unavailable, the last known ones apply."""
        try:
            self._report_alive()
            with self._database.reading() as session:
                self._requests = store.stop_requests(session, list(self._requests), self._job)
        except DatabaseGoneError:
            pass  # noticed when something is stored
        except DBAPIError as error:
            if not is_unavailable(error):
                raise

    def _report_alive(self) -> None:
        """Tell servers on other machines; those of an SQLite database see the process itself."""
        at = time.monotonic()
        if not self._database.is_sqlite and at >= self._next_report:
            self._next_report = at + REPORT_SECONDS
            with self._database.writing() as session:
                store.report_alive(session, self._job)

    def store_asked(self) -> None:
        """Store a new request from this process, so that others see that the runs are stopping."""
        asked = self._asked()
        if asked is not self._stored:
            when_available(partial(self._store, force=asked is StopRequest.FORCE))
            self._stored = asked

    def _store(self, *, force: bool) -> None:
        with self._database.writing() as session:
            for row in store.active_runs(session):
                if row.job == self._job:
                    store.request_stop(session, row.id, force=force)
