"""Transitions between a run's states.

Each is one conditional UPDATE, so that only one of two competing processes succeeds.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Update, func, select, update
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.processes import ProcessId
from backend.store.common import ACTIVE, RESUMABLE, changes_rows, now
from backend.store.configs import UNREADABLE, readable_config
from backend.store.listing import sorted_values
from backend.store.models import RunRow
from backend.store.queue import first_rank, last_rank
from backend.store.runs import get_run
from sae_engine.schema.records import StopRequest
from sae_engine.schema.runs import ENDED, RunStatus

FIRST_PHASE = "importing PyTorch"
"""What a process does before the engine's first record."""


def request_stop(session: Session, run_id: str, *, force: bool) -> RunRow:
    """Stop a queued run at once; ask an active one to stop, with `force` without features."""
    row = get_run(session, run_id)
    if row.status in ENDED:
        raise ConflictError(
            f"The run '{row.name}' has already ended; it is {row.status}.", kind="ended"
        )
    if row.status == "queued":
        _change_status(row, "stopped")
        row.ended_at, row.phase, row.queue_rank = now(), None, None
    else:
        if row.status != "stopping":
            _change_status(row, "stopping")
        if force and row.force_stop_at is None:
            row.force_stop_at = now()
    session.flush()
    return row


def requeue(session: Session, run_id: str, *, first: bool = False) -> RunRow:
    """Queue an ended run again, last or first; it continues from its checkpoint if it has one."""
    row = get_run(session, run_id)
    if row.status not in RESUMABLE:
        raise ConflictError(f"The run '{row.name}' is {row.status}; there is nothing to resume.")
    row.queue_rank = first_rank(session) - 1 if first else last_rank(session) + 1
    _change_status(row, "queued")
    row.queued_at = now()
    row.started_at = row.ended_at = row.force_stop_at = None
    row.error_type = row.error_message = row.error_log_tail = None
    row.job = row.pid = row.pid_created = row.slot = None
    row.eta_seconds = row.tokens_per_second = row.phase = None
    session.flush()
    return row


def _change_status(row: RunRow, status: RunStatus) -> None:
    row.status = status
    row.revision = row.status_revision = row.revision + 1


def fail_unreadable(session: Session, row: RunRow) -> bool:
    """Fail a queued run whose stored configuration is invalid; returns whether it was."""
    problem = readable_config(row).problem
    if problem is None:
        return False
    queued = update(RunRow).where(RunRow.id == row.id, RunRow.status == "queued")
    values = _ended("failed") | _error(UNREADABLE, problem, "") | {"queue_rank": None}
    return changes_rows(session, queued.values(values))


def claim(
    session: Session,
    first: RunRow,
    queue: Sequence[RunRow],
    *,
    slot: str,
    device: str,
    device_kind: str = "",
) -> Sequence[RunRow]:
    """Assign a queued run to a slot and a new job, together with the runs of its sweep that can
    share its pass.

    Only one of several claimants gets them. A run that resumes is taken alone, because others of
    its sweep stopped at other steps, and so is one that trains nothing.
    """
    wanted = [first.seq]
    if (key := _shared_pass(first)) is not None:
        members = [row for row in queue if row.group_id == first.group_id]
        wanted = [row.seq for row in members if _shared_pass(row) == key]
    at = now()
    claimed = session.scalars(
        update(RunRow)
        .where(RunRow.seq.in_(wanted), RunRow.status == "queued")
        .values(
            **_status("running"), slot=slot, device=device, device_kind=device_kind,
            started_at=at, reported_at=at, job=new_job(first.id), pid=None, pid_created=None,
            phase="starting", queue_rank=None,
        )
        .returning(RunRow)
        .execution_options(populate_existing=True)
    ).all()  # fmt: skip
    return sorted(claimed, key=lambda row: row.seq)


def new_job(run_id: str) -> str:
    """A name for a job that starts with this run, different from those of all earlier jobs."""
    return f"{run_id}-{secrets.token_hex(4)}"


def _shared_pass(row: RunRow) -> str | None:
    """The pass that a sweep's run can share with others; None if it has to run alone."""
    if row.group_id is None or row.queued_at != row.created_at:
        return None
    config, problem = readable_config(row)
    return None if problem or config.sae.pretrained else config.pass_key


def active_runs(session: Session) -> Sequence[RunRow]:
    """Runs that are marked as having a process."""
    return session.scalars(
        select(RunRow).where(RunRow.status.in_(ACTIVE)).order_by(RunRow.seq)
    ).all()


def count_by_status(session: Session) -> dict[str, int]:
    rows = session.execute(
        select(RunRow.status, func.count().label("num_runs")).group_by(RunRow.status)
    )
    return {row.status: row.num_runs for row in rows}


def put_back(session: Session, run_ids: Sequence[str]) -> None:
    """Return claimed runs whose process never began to the front of the queue, in their order;
    those that were asked to stop are stopped.
    """
    unstarted = (
        RunRow.id.in_(run_ids),
        RunRow.status.in_(ACTIVE),
        RunRow.reported_at == RunRow.started_at,
    )
    rows = session.scalars(select(RunRow).where(*unstarted).order_by(RunRow.seq.desc())).all()
    for row in rows:
        row.slot = row.phase = row.started_at = row.job = row.pid = row.pid_created = None
        if row.status == "stopping":
            _change_status(row, "stopped")
            row.ended_at = now()
        else:
            row.queue_rank = first_rank(session) - 1
            _change_status(row, "queued")
        session.flush()


def take_over(session: Session, job: str, process: ProcessId) -> Sequence[RunRow]:
    """Record that a process runs a job; returns the job's active runs, none if another process
    took them or another job has them now.
    """
    unclaimed = RunRow.pid.is_(None) | (
        (RunRow.pid == process.pid) & (RunRow.pid_created == process.created)
    )
    taken = session.scalars(
        update(RunRow)
        .where(RunRow.job == job, RunRow.status.in_(ACTIVE), unclaimed)
        .values(pid=process.pid, pid_created=process.created, reported_at=now(), phase=FIRST_PHASE)
        .returning(RunRow)
        .execution_options(populate_existing=True)
    ).all()
    return sorted(taken, key=lambda row: row.seq)


def is_run_by(session: Session, run_id: str, job: str | None) -> bool:
    """Whether a run is active and this is its job."""
    mine = (RunRow.id == run_id, RunRow.job == job, RunRow.status.in_(ACTIVE))
    return session.scalar(select(RunRow.seq).where(*mine)) is not None


def report_alive(session: Session, job: str) -> None:
    """Note that a job still works on its runs."""
    at = now()
    mine = (RunRow.job == job, RunRow.status.in_(ACTIVE))
    for row in session.scalars(select(RunRow).where(*mine)):
        row.eta_seconds, row.reported_at = row.remaining_seconds(at), at


def stop_requests(session: Session, run_ids: Sequence[str], job: str) -> dict[str, StopRequest]:
    """The stop request of each run. The job has to stop at once any run that no longer belongs to
    it: one that was deleted, given up or started again.
    """
    requests = dict.fromkeys(run_ids, StopRequest.FORCE)
    mine = (RunRow.id.in_(run_ids), RunRow.job == job, RunRow.status.in_(ACTIVE))
    for row in session.execute(select(RunRow.id, RunRow.status, RunRow.force_stop_at).where(*mine)):
        if row.force_stop_at is None:
            stopping = row.status == "stopping"
            requests[row.id] = StopRequest.STOP if stopping else StopRequest.NONE
    return requests


def end_run(session: Session, run_id: str, status: RunStatus) -> bool:
    """Record that a run finished or was stopped; returns False if it had already ended."""
    return changes_rows(session, _active(run_id).values(**_ended(status)))


def fail_run(
    session: Session, run_id: str, status: RunStatus, *, kind: str, message: str, log_tail: str
) -> bool:
    """Record that a run `failed` or was `interrupted`; returns False if it had already ended."""
    values = _ended(status) | _error(kind, message, log_tail)
    return changes_rows(session, _active(run_id).values(values))


def update_run(session: Session, run_id: str, **values: Any) -> None:
    """Set columns of an active run."""
    session.execute(_active(run_id).values(reported_at=now(), **values))


def update_metrics(
    session: Session, run_id: str, latest: Mapping[str, float], **values: Any
) -> None:
    """Set an active run's latest metrics and other columns."""
    columns = {"metrics": json.dumps(latest), **sorted_values(latest)}
    update_run(session, run_id, **columns, **values)


def _active(run_id: str) -> Update:
    return update(RunRow).where(RunRow.id == run_id, RunRow.status.in_(ACTIVE))


def _status(status: RunStatus) -> dict[str, Any]:
    """Columns of a new status, with the next revision."""
    revision = RunRow.revision + 1
    return {"status": status, "revision": revision, "status_revision": revision}


def _ended(status: RunStatus) -> dict[str, Any]:
    return {**_status(status), "ended_at": now(), "phase": None, "eta_seconds": None}


def _error(kind: str, message: str, log_tail: str) -> dict[str, Any]:
    """Columns of an error, without the zero bytes that PostgreSQL refuses."""
    texts = {"error_type": kind, "error_message": message, "error_log_tail": log_tail}
    return {name: text.replace("\0", "\N{SYMBOL FOR NULL}") for name, text in texts.items()}
