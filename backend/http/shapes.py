"""Converts database rows to REST shapes."""

from __future__ import annotations

from typing import NamedTuple

from backend.http.curves import metric_value
from backend.jobs.slots import node_of
from backend.store import RESUMABLE, now, readable_config
from backend.store.configs import UNREADABLE
from backend.store.models import NoticeRow, RunRow, SnapshotRow
from sae_engine.files import RunFolder
from sae_engine.schema.runs import Notice, Progress, Run, RunError, Snapshot


class QueuePlace(NamedTuple):
    """A queued run's position, from 1, and why it has not started."""

    position: int
    reason: str


def run_shape(row: RunRow, folder: RunFolder, queued: QueuePlace | None = None) -> Run:
    """The REST shape of a run; `queued` is the place of a queued one.

    Invalid fields of a stored configuration are shown with their defaults, and the error says so.
    """
    config, problem = readable_config(row)
    error = run_error(row)
    if problem is not None:
        reported = "" if error is None or error.type == UNREADABLE else f" {error.message}"
        message = f"{problem} They are shown with their defaults.{reported}"
        error = RunError(type=UNREADABLE, message=message, log_tail=row.error_log_tail or "")
    return Run.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "status": row.status,
            "config": config,
            "chosen": row.chosen or {},
            "tags": [tag.tag for tag in row.tags],
            "notes": row.notes,
            "archived": row.archived,
            "group_id": row.group_id,
            "cloned_from": row.cloned_from,
            "device": row.slot if node_of(row.slot) else row.device,
            "queue_position": queued and queued.position,
            "waiting_for": queued and queued.reason,
            "alerts": list(dict.fromkeys(alert.kind for alert in row.alerts)),
            "created_at": row.created_at,
            "started_at": row.started_at,
            "ended_at": row.ended_at,
            "progress": Progress(
                step=row.step,
                total_steps=row.total_steps,
                tokens=row.tokens,
                total_tokens=row.total_tokens,
                tokens_per_second=row.tokens_per_second,
                eta_seconds=row.remaining_seconds(now()),
                phase=row.phase,
            ),
            "metrics": {name: metric_value(v) for name, v in row.latest_metrics.items()},
            "error": error,
            "revision": row.revision,
            "resumable": (problem is None and row.status in RESUMABLE and folder.has_checkpoint),
        }
    )


def run_error(row: RunRow) -> RunError | None:
    """Why a run failed or was interrupted; None for any other."""
    if row.error_type is None:
        return None
    return RunError(
        type=row.error_type, message=row.error_message or "", log_tail=row.error_log_tail or ""
    )


def snapshot_shape(row: SnapshotRow) -> Snapshot:
    return Snapshot(
        step=row.step,
        tokens=row.tokens,
        index_tokens=row.index_tokens,
        created_at=row.created_at,
        final=row.final,
    )


def notice_shape(row: NoticeRow) -> Notice:
    return Notice.model_validate(
        {
            "step": row.step,
            "level": row.level,
            "kind": row.kind,
            "message": row.message,
            "created_at": row.created_at,
        }
    )
