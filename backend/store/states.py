"""How a run comes into the queue, out of it, and to its end.

Every change of a run's state is one conditional UPDATE, so that of two who want it only one
succeeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Update, func, select, update
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.store.common import ACTIVE, RESUMABLE, executed, now
from backend.store.listing import sorted_values
from backend.store.models import RunRow
from backend.store.queue import last_rank
from backend.store.runs import get_run
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import StopRequest
from sae_engine.schema.runs import ENDED, RunStatus


def request_stop(session: Session, run_id: str, *, force: bool) -> RunRow:
    """A queued run is stopped at once; a running one is asked to, and asked harder with `force`."""
    row = get_run(session, run_id)
    if row.status in ENDED:
        raise ConflictError(
            f"The run '{row.name}' has ended already; it is {row.status}.", kind="ended"
        )
    if row.status == "queued":
        _change_status(session, row, "stopped")
        row.ended_at, row.phase = now(), None
    else:
        if row.status != "stopping":
            _change_status(session, row, "stopping")
        if force and row.force_stop_at is None:
            row.force_stop_at = now()
    session.flush()
    return row


def requeue(session: Session, run_id: str) -> RunRow:
    """Put an ended run back into the queue, to go on from its checkpoint if it has one."""
    row = get_run(session, run_id)
    if row.status not in RESUMABLE:
        raise ConflictError(f"The run '{row.name}' is {row.status}; there is nothing to resume.")
    row.queue_rank = last_rank(session) + 1
    _change_status(session, row, "queued")
    row.queued_at = now()
    row.started_at = row.ended_at = row.force_stop_at = None
    row.error_type = row.error_message = row.error_log_tail = None
    row.pid = row.pid_created = row.eta_seconds = row.tokens_per_second = row.phase = None
    row.slot = None
    session.flush()
    return row


def _change_status(session: Session, row: RunRow, status: RunStatus) -> None:
    row.status = status
    row.revision = row.status_revision = row.revision + 1


def claim(
    session: Session, first: RunRow, queue: Sequence[RunRow], *, slot: str, device: str
) -> Sequence[RunRow]:
    """Take a queued run for a slot, and those of its sweep in the queue that can share its pass.

    Of several claimants only one gets them. A run that resumes is taken alone, because the others
    of its sweep stand elsewhere, and so is one that trains nothing.
    """
    wanted = [first.seq]
    if first.group_id is not None and _begins(first):
        key = RunConfig.model_validate(first.config).pass_key
        wanted = [
            row.seq
            for row in queue
            if row.group_id == first.group_id
            and _begins(row)
            and RunConfig.model_validate(row.config).pass_key == key
        ]
    claimed = session.scalars(
        update(RunRow)
        .where(RunRow.seq.in_(wanted), RunRow.status == "queued")
        .values(
            **_told("running"), slot=slot, device=device, started_at=now(), reported_at=now(),
            phase="starting", queue_rank=None,
        )
        .returning(RunRow)
        .execution_options(populate_existing=True)
    ).all()  # fmt: skip
    return sorted(claimed, key=lambda row: row.seq)


def _begins(row: RunRow) -> bool:
    """Whether a queued run is to be trained from its beginning: it does not resume, nor is its SAE
    trained already.
    """
    return row.queued_at == row.created_at and not row.config["sae"].get("pretrained")


def active_runs(session: Session) -> Sequence[RunRow]:
    """Runs that a process works on, or should."""
    return session.scalars(
        select(RunRow).where(RunRow.status.in_(ACTIVE)).order_by(RunRow.seq)
    ).all()


def count_by_status(session: Session) -> dict[str, int]:
    rows = session.execute(
        select(RunRow.status, func.count().label("num_runs")).group_by(RunRow.status)
    )
    return {row.status: row.num_runs for row in rows}


def set_process(session: Session, run_id: str, *, pid: int, created: float) -> bool:
    """Note which process works on a run; False if it is no longer to be worked on."""
    return executed(session, _active(run_id).values(pid=pid, pid_created=created))


def stop_requests(session: Session, run_ids: Sequence[str]) -> dict[str, StopRequest]:
    """What each run has been asked to do; one that was deleted is to end at once."""
    requests = dict.fromkeys(run_ids, StopRequest.FORCE)
    for row in session.execute(
        select(RunRow.id, RunRow.status, RunRow.force_stop_at).where(RunRow.id.in_(run_ids))
    ):
        if row.force_stop_at is None:
            stopping = row.status == "stopping"
            requests[row.id] = StopRequest.STOP if stopping else StopRequest.NONE
    return requests


def end_run(session: Session, run_id: str, status: RunStatus) -> bool:
    """Record that a run ended by itself or on request; False if it had ended already."""
    return executed(session, _ending(run_id, status))


def fail_run(
    session: Session, run_id: str, status: RunStatus, *, kind: str, message: str, log_tail: str
) -> bool:
    """Record that a run `failed` or was `interrupted`, and why; False if it had ended already."""
    told = {"error_type": kind, "error_message": message, "error_log_tail": log_tail}
    storable = {name: text.replace("\0", "\N{SYMBOL FOR NULL}") for name, text in told.items()}
    return executed(session, _ending(run_id, status).values(storable))


def update_run(session: Session, run_id: str, **values: Any) -> None:
    """Set columns of a run that is being worked on."""
    session.execute(_active(run_id).values(reported_at=now(), **values))


def update_metrics(
    session: Session, run_id: str, latest: Mapping[str, float], **values: Any
) -> None:
    """Set the latest metrics of a run that is being worked on, and other columns."""
    told = {"metrics": json.dumps(latest), **sorted_values(latest)}
    update_run(session, run_id, **told, **values)


def _active(run_id: str) -> Update:
    return update(RunRow).where(RunRow.id == run_id, RunRow.status.in_(ACTIVE))


def _told(status: RunStatus) -> dict[str, Any]:
    """A new status, numbered as what happened last."""
    revision = RunRow.revision + 1
    return {"status": status, "revision": revision, "status_revision": revision}


def _ending(run_id: str, status: RunStatus) -> Update:
    ended = {"ended_at": now(), "phase": None, "eta_seconds": None}
    return _active(run_id).values(**_told(status), **ended)
