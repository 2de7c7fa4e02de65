"""All SQL. Functions take a session and return rows; who opens the session decides the transaction.

Every change of a run's state is one conditional UPDATE, so that of two who want it only one
succeeds.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import CursorResult, Row, Update, delete, func, or_, select, update
from sqlalchemy.orm import Session

from backend.errors import ConflictError, NotFoundError, UnprocessableError
from backend.models import LabelRow, MetricsRow, NoticeRow, RunRow, SnapshotRow, TagRow
from sae_engine.errors import UserError
from sae_engine.schema.api import ENDED, LabelUpdate, RunPatch, RunStatus
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import MetricsRecord, SnapshotRecord, StopRequest

ACTIVE: tuple[RunStatus, ...] = ("running", "stopping")
RESUMABLE: tuple[RunStatus, ...] = ("stopped", "failed", "interrupted")


def now() -> datetime:
    return datetime.now(UTC)


# Runs


def add_run(
    session: Session,
    *,
    config: RunConfig,
    tags: Sequence[str] = (),
    notes: str = "",
    status: RunStatus = "queued",
    group_id: str | None = None,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> RunRow:
    """Store a new run, named as its config is; `running` is for one that its caller runs itself."""
    at = now()
    row = RunRow(
        id=secrets.token_hex(5),
        name=config.name,
        status=status,
        config=config.model_dump(mode="json"),
        notes=notes,
        group_id=group_id,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
        created_at=at,
        queued_at=at,
        started_at=at if status == "running" else None,
        tags=_tag_rows(tags),
    )
    session.add(row)
    session.flush()
    return row


def earlier_request(session: Session, idempotency_key: str, request_digest: str) -> RunRow | None:
    """The run that a request with this key has made; raises if that request asked for something
    else.
    """
    row = session.scalar(select(RunRow).where(RunRow.idempotency_key == idempotency_key))
    if row is not None and row.request_digest != request_digest:
        raise UnprocessableError(
            f"The Idempotency-Key '{idempotency_key}' was used for a different request; "
            "send a new key.",
            kind="idempotency-key-reused",
        )
    return row


def get_run(session: Session, run_id: str) -> RunRow:
    row = session.scalar(select(RunRow).where(RunRow.id == run_id))
    if row is None:
        raise NotFoundError(f"There is no run '{run_id}'.", kind="run-not-found")
    return row


def find_run(session: Session, text: str) -> RunRow:
    """A run by its id, the beginning of its id, or its name; raises when none or several are
    meant.
    """
    exact = session.scalar(select(RunRow).where(RunRow.id == text))
    if exact is not None:
        return exact
    named = or_(RunRow.name == text, RunRow.id.startswith(text, autoescape=True))
    rows = session.scalars(select(RunRow).where(named).order_by(RunRow.seq.desc())).all()
    if not rows:
        raise UserError(f"There is no run '{text}'; `sae-workbench runs` lists them.")
    if len(rows) > 1:
        ids = ", ".join(row.id for row in rows[:10])
        raise UserError(f"'{text}' is the name of {len(rows)} runs; give one of their ids: {ids}.")
    return rows[0]


def list_runs(
    session: Session,
    *,
    status: Sequence[RunStatus] = (),
    q: str = "",
    tag: str | None = None,
    group_id: str | None = None,
    archived: bool = False,
    limit: int = 50,
    before: int | None = None,
) -> Sequence[RunRow]:
    """Runs, newest first, that were made before the one whose `seq` is `before`."""
    query = select(RunRow).where(RunRow.archived == archived)
    if status:
        query = query.where(RunRow.status.in_(status))
    if q:
        wanted = q.lower()
        query = query.where(
            or_(
                func.lower(RunRow.name).contains(wanted, autoescape=True),
                func.lower(RunRow.notes).contains(wanted, autoescape=True),
                RunRow.id.startswith(wanted, autoescape=True),
            )
        )
    if tag is not None:
        query = query.where(RunRow.id.in_(select(TagRow.run_id).where(TagRow.tag == tag)))
    if group_id is not None:
        query = query.where(RunRow.group_id == group_id)
    if before is not None:
        query = query.where(RunRow.seq < before)
    return session.scalars(query.order_by(RunRow.seq.desc()).limit(limit)).all()


def group(session: Session, group_id: str) -> Sequence[RunRow]:
    """The runs of a sweep, in the order they were made."""
    return session.scalars(
        select(RunRow).where(RunRow.group_id == group_id).order_by(RunRow.seq)
    ).all()


def patch_run(session: Session, run_id: str, patch: RunPatch) -> RunRow:
    row = get_run(session, run_id)
    if patch.name is not None:
        row.name = patch.name
        row.config = {**row.config, "name": patch.name}
    if patch.notes is not None:
        row.notes = patch.notes
    if patch.archived is not None:
        row.archived = patch.archived
    if patch.tags is not None:
        row.tags.clear()
        session.flush()
        row.tags.extend(_tag_rows(patch.tags))
    session.flush()
    return row


def delete_run(session: Session, run_id: str) -> None:
    """Forget a run and all that hangs on it; refuses while a process works on it."""
    row = get_run(session, run_id)
    deleted = _execute(
        session, delete(RunRow).where(RunRow.id == run_id, RunRow.status.not_in(ACTIVE))
    )
    if not deleted:
        raise ConflictError(
            f"The run '{row.name}' is {row.status}; stop it before deleting it.", kind="run-active"
        )


def _tag_rows(tags: Iterable[str]) -> list[TagRow]:
    distinct = dict.fromkeys(tag.strip() for tag in tags if tag.strip())
    return [TagRow(tag=tag, position=position) for position, tag in enumerate(distinct)]


# States


def request_stop(session: Session, run_id: str, *, force: bool) -> RunRow:
    """A queued run is stopped at once; a running one is asked to, and asked harder with `force`."""
    row = get_run(session, run_id)
    if row.status in ENDED:
        raise ConflictError(
            f"The run '{row.name}' has ended already; it is {row.status}.", kind="ended"
        )
    if row.status == "queued":
        row.status, row.ended_at, row.phase = "stopped", now(), None
    else:
        row.status = "stopping"
        if force and row.force_stop_at is None:
            row.force_stop_at = now()
    session.flush()
    return row


def requeue(session: Session, run_id: str) -> RunRow:
    """Put an ended run back into the queue, to go on from its checkpoint."""
    row = get_run(session, run_id)
    if row.status not in RESUMABLE:
        raise ConflictError(f"The run '{row.name}' is {row.status}; there is nothing to resume.")
    row.status, row.queued_at = "queued", now()
    row.started_at = row.ended_at = row.force_stop_at = None
    row.error_type = row.error_message = row.error_log_tail = None
    row.pid = row.pid_created = row.eta_seconds = row.tokens_per_second = row.phase = None
    session.flush()
    return row


def claim_next(session: Session, device: str) -> Sequence[RunRow]:
    """Take the oldest queued run for `device`, and those of its sweep that can share its pass.

    Of several claimants only one gets them. A run that resumes is taken alone, because the others
    of its sweep stand elsewhere, and so is one that trains nothing.
    """
    oldest = session.scalar(
        select(RunRow)
        .where(RunRow.status == "queued")
        .order_by(RunRow.queued_at, RunRow.seq)
        .limit(1)
    )
    if oldest is None:
        return []
    wanted = [oldest.seq]
    if oldest.group_id is not None and _begins(oldest):
        key = RunConfig.model_validate(oldest.config).pass_key
        beside = session.scalars(
            select(RunRow).where(RunRow.group_id == oldest.group_id, RunRow.status == "queued")
        )
        wanted = [
            row.seq
            for row in beside
            if _begins(row) and RunConfig.model_validate(row.config).pass_key == key
        ]
    claimed = session.scalars(
        update(RunRow)
        .where(RunRow.seq.in_(wanted), RunRow.status == "queued")
        .values(status="running", device=device, started_at=now(), phase="starting")
        .returning(RunRow)
        .execution_options(populate_existing=True)
    ).all()
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
    return _execute(session, _active(run_id).values(pid=pid, pid_created=created))


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
    return _execute(session, _ending(run_id, status))


def fail_run(
    session: Session, run_id: str, status: RunStatus, *, kind: str, message: str, log_tail: str
) -> bool:
    """Record that a run `failed` or was `interrupted`, and why; False if it had ended already."""
    return _execute(
        session,
        _ending(run_id, status).values(
            error_type=kind, error_message=message, error_log_tail=log_tail
        ),
    )


def _active(run_id: str) -> Update:
    return update(RunRow).where(RunRow.id == run_id, RunRow.status.in_(ACTIVE))


def _ending(run_id: str, status: RunStatus) -> Update:
    return _active(run_id).values(status=status, ended_at=now(), phase=None, eta_seconds=None)


def _execute(session: Session, statement: Any) -> bool:
    return cast(CursorResult[Any], session.execute(statement)).rowcount > 0


# What a run reports


def update_run(session: Session, run_id: str, **values: Any) -> None:
    """Set columns of a run that is being worked on."""
    session.execute(_active(run_id).values(**values))


def add_metrics(session: Session, run_id: str, records: Sequence[MetricsRecord]) -> None:
    """Store measurements; at a step that has some already, the same names are overwritten."""
    steps = {record.step for record in records}
    known = session.scalars(
        select(MetricsRow).where(MetricsRow.run_id == run_id, MetricsRow.step.in_(steps))
    )
    rows = {row.step: row for row in known}
    for record in records:
        row = rows.get(record.step)
        values = {**json.loads(row.values), **record.values} if row else record.values
        if row is None:
            row = rows[record.step] = MetricsRow(run_id=run_id, step=record.step)
            session.add(row)
        row.tokens, row.time = record.tokens, record.time
        row.values = json.dumps(values, separators=(",", ":"))


def forget_from(session: Session, run_id: str, step: int) -> None:
    """Drop what a run measured and published at `step` and later: it resumed from before that."""
    for table in (MetricsRow, SnapshotRow):
        session.execute(delete(table).where(table.run_id == run_id, table.step >= step))


def metrics(
    session: Session, run_id: str, since_step: int = -1
) -> Sequence[Row[int, int, float, str]]:
    """(step, tokens, time, values) of every step after `since_step`, in order."""
    return session.execute(
        select(MetricsRow.step, MetricsRow.tokens, MetricsRow.time, MetricsRow.values)
        .where(MetricsRow.run_id == run_id, MetricsRow.step > since_step)
        .order_by(MetricsRow.step)
    ).all()


def add_snapshot(session: Session, run_id: str, record: SnapshotRecord) -> None:
    session.merge(
        SnapshotRow(
            run_id=run_id,
            step=record.step,
            tokens=record.tokens,
            index_tokens=record.index_tokens,
            seconds=record.seconds,
            final=record.final,
            created_at=now(),
        )
    )


def snapshots(session: Session, run_id: str) -> Sequence[SnapshotRow]:
    return session.scalars(
        select(SnapshotRow).where(SnapshotRow.run_id == run_id).order_by(SnapshotRow.step)
    ).all()


def add_notice(
    session: Session, run_id: str, *, level: str, message: str, step: int | None = None
) -> None:
    row = NoticeRow(run_id=run_id, step=step, level=level, message=message, created_at=now())
    session.add(row)


def notices(session: Session, run_id: str) -> Sequence[NoticeRow]:
    return session.scalars(
        select(NoticeRow).where(NoticeRow.run_id == run_id).order_by(NoticeRow.id)
    ).all()


# Labels


def labels(session: Session, run_id: str) -> Mapping[int, str]:
    """The features of a run that have a label, and the label."""
    rows = session.execute(
        select(LabelRow.feature, LabelRow.label).where(
            LabelRow.run_id == run_id, LabelRow.label != ""
        )
    )
    return {row.feature: row.label for row in rows}


def label(session: Session, run_id: str, feature: int) -> LabelUpdate:
    row = session.get(LabelRow, (run_id, feature))
    if row is None:
        return LabelUpdate(label="", notes="", starred=False)
    return LabelUpdate(label=row.label, notes=row.notes, starred=row.starred)


def set_label(session: Session, run_id: str, feature: int, update: LabelUpdate) -> None:
    """Write what a person says; a label that the person changed is the person's from then on."""
    row = session.get(LabelRow, (run_id, feature))
    if row is None:
        row = LabelRow(run_id=run_id, feature=feature, label="")
        session.add(row)
    if row.label != update.label or row.author is None:
        row.author, row.written_at = "person", now()
        row.model = row.prompt_version = row.score = None
    row.label, row.notes, row.starred = update.label, update.notes, update.starred
