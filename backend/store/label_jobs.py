"""All SQL about labels' origins and about the jobs that make labels; see `repository`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.processes import is_alive
from backend.store import now
from backend.store.models import LabelJobRow, LabelRow
from sae_engine.schema.labels import DetectionScore, FeatureLabel, LabelJobStatus, LabelOrigin


def written_labels(
    session: Session, run_id: str, features: Sequence[int] | None = None
) -> dict[int, FeatureLabel]:
    """What is written about the features of a run, or about some of them, in order."""
    query = select(LabelRow).where(LabelRow.run_id == run_id).order_by(LabelRow.feature)
    if features is not None:
        query = query.where(LabelRow.feature.in_(features))
    return {row.feature: _shape(row) for row in session.scalars(query)}


def _shape(row: LabelRow) -> FeatureLabel:
    origin = LabelOrigin.model_validate(
        {
            "author": row.author or "person",
            "model": row.model,
            "prompt_version": row.prompt_version,
            "created_at": row.written_at,
            "score": None if row.score is None else DetectionScore.model_validate_json(row.score),
        }
    )
    return FeatureLabel(
        feature=row.feature, label=row.label, notes=row.notes, starred=row.starred, origin=origin
    )


def propose_label(
    session: Session,
    run_id: str,
    feature: int,
    label: str,
    *,
    model: str,
    prompt_version: str,
    score: DetectionScore | None,
) -> bool:
    """Write a model's label unless a person has written one; False if so.

    One conditional UPDATE, so that a person who writes at the same time is never overwritten.
    """
    values = {
        "label": label,
        "author": "model",
        "model": model,
        "prompt_version": prompt_version,
        "written_at": now(),
        "score": None if score is None else score.model_dump_json(),
    }
    here = (LabelRow.run_id == run_id, LabelRow.feature == feature)
    open_ = or_(LabelRow.label == "", LabelRow.author == "model")
    changed = cast(
        CursorResult[Any], session.execute(update(LabelRow).where(*here, open_).values(values))
    )
    if changed.rowcount:
        return True
    try:
        with session.begin_nested():
            session.add(LabelRow(run_id=run_id, feature=feature, notes="", starred=False, **values))
    except IntegrityError:
        return False
    return True


# Jobs


def add_label_job(
    session: Session,
    run_id: str,
    *,
    snapshot: int,
    model: str,
    total: int,
    pid: int,
    pid_created: float,
) -> LabelJobRow:
    """Store a job that begins now; raises `ConflictError` while another works on the run."""
    settle_label_jobs(session)
    running = session.scalar(
        select(LabelJobRow).where(LabelJobRow.run_id == run_id, LabelJobRow.status == "running")
    )
    if running is not None:
        raise ConflictError(
            "Features of this run are being labeled; wait for the end, or cancel it.",
            kind="labeling",
        )
    row = LabelJobRow(
        run_id=run_id,
        status="running",
        snapshot=snapshot,
        model=model,
        total=total,
        created_at=now(),
        pid=pid,
        pid_created=pid_created,
    )
    session.add(row)
    session.flush()
    return row


def label_jobs(session: Session, run_id: str, limit: int = 20) -> Sequence[LabelJobRow]:
    """The jobs of a run, the newest first."""
    return session.scalars(
        select(LabelJobRow)
        .where(LabelJobRow.run_id == run_id)
        .order_by(LabelJobRow.id.desc())
        .limit(limit)
    ).all()


def count_for_label_job(session: Session, job_id: int, **more: int) -> bool:
    """Add to a job's counters; False if it is no longer to go on."""
    values = {name: getattr(LabelJobRow, name) + number for name, number in more.items()}
    return _change(session, job_id, **values)


def note_label_problem(session: Session, job_id: int, problem: str) -> None:
    _change(session, job_id, problem=problem)


def end_label_job(
    session: Session, job_id: int, status: LabelJobStatus, problem: str | None = None
) -> bool:
    """Record how a job ended; False if it had ended already."""
    values: dict[str, Any] = {} if problem is None else {"problem": problem}
    return _change(session, job_id, status=status, ended_at=now(), **values)


def is_orphaned(row: LabelJobRow) -> bool:
    """Whether a job is said to run, and the server that did it is gone."""
    return row.status == "running" and not is_alive(row.pid, row.pid_created)


def settle_label_jobs(session: Session) -> None:
    """Note of jobs whose server is gone that they were interrupted."""
    for row in session.scalars(select(LabelJobRow).where(LabelJobRow.status == "running")):
        if is_orphaned(row):
            end_label_job(session, row.id, "interrupted", "The server that did it has ended.")
            session.refresh(row)


def _change(session: Session, job_id: int, **values: Any) -> bool:
    running = (LabelJobRow.id == job_id, LabelJobRow.status == "running")
    changed = session.execute(update(LabelJobRow).where(*running).values(values))
    return cast(CursorResult[Any], changed).rowcount > 0
