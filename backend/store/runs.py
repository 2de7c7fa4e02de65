"""Runs: added, found, changed, deleted, and how fast they were."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from backend.errors import ConflictError, NotFoundError, UnprocessableError
from backend.store.common import ACTIVE, changes_rows, now
from backend.store.configs import UnreadableConfigError, config_of, readable_config
from backend.store.models import RunRow, TagRow
from backend.store.queue import last_rank, move_in_queue
from sae_engine.errors import UserError
from sae_engine.schema.config import RunConfig
from sae_engine.schema.runs import RunPatch, RunStatus

COMPARED_RUNS = 200
"""Number of the newest runs whose speed is considered."""


def new_run_id() -> str:
    return secrets.token_hex(5)


def add_run(
    session: Session,
    *,
    config: RunConfig,
    run_id: str | None = None,
    tags: Sequence[str] = (),
    notes: str = "",
    status: RunStatus = "queued",
    job: str | None = None,
    group_id: str | None = None,
    cloned_from: str | None = None,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> RunRow:
    """Store a new run under its config's name; `running`, as a `job`, is for callers that run it
    themselves.
    """
    at = now()
    row = RunRow(
        id=run_id or new_run_id(),
        name=config.name,
        status=status,
        config=config.model_dump(mode="json"),
        notes=notes,
        job=job,
        group_id=group_id,
        cloned_from=cloned_from,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
        created_at=at,
        queued_at=at,
        queue_rank=last_rank(session) + 1 if status == "queued" else None,
        started_at=at if status == "running" else None,
        tags=_tag_rows(tags),
    )
    session.add(row)
    session.flush()
    return row


def earlier_request(
    session: Session, idempotency_key: str | None, request_digest: str
) -> RunRow | None:
    """The run that an earlier request with this key created; raises if that request differed."""
    if idempotency_key is None:
        return None
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
    """A run by id, prefix of its id, or name; raises `UserError` unless exactly one matches."""
    exact = session.scalar(select(RunRow).where(RunRow.id == text))
    if exact is not None:
        return exact
    named = or_(RunRow.name == text, RunRow.id.startswith(text, autoescape=True))
    rows = session.scalars(select(RunRow).where(named).order_by(RunRow.seq.desc())).all()
    if not rows:
        raise UserError(f"There is no run '{text}'; `sae-workbench runs` lists them.")
    if len(rows) > 1:
        ids = ", ".join(row.id for row in rows[:10])
        raise UserError(f"'{text}' matches {len(rows)} runs; give one of their ids: {ids}.")
    return rows[0]


def group(session: Session, group_id: str) -> Sequence[RunRow]:
    """The runs of a sweep, in the order they were created."""
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
    if patch.queue_position is not None:
        move_in_queue(session, row, patch.queue_position)
    return row


def delete_run(session: Session, run_id: str) -> str | None:
    """Delete a run and everything stored about it; refuses while it is active. Returns the path of
    the SAE that it imported, if it did.
    """
    row = get_run(session, run_id)
    path = readable_config(row).config.sae.pretrained
    deleted = changes_rows(
        session, delete(RunRow).where(RunRow.id == run_id, RunRow.status.not_in(ACTIVE))
    )
    if not deleted:
        raise ConflictError(
            f"The run '{row.name}' is {row.status}; stop it before deleting it.", kind="run-active"
        )
    return path


def imported_saes(session: Session) -> Sequence[str]:
    """Paths of the SAEs that runs have imported."""
    path = RunRow.config["sae"]["pretrained"].as_string()
    found = session.scalars(select(path).where(path.is_not(None)).distinct())
    return [each for each in found if each is not None]


def _tag_rows(tags: Iterable[str]) -> list[TagRow]:
    distinct = dict.fromkeys(tag.strip() for tag in tags if tag.strip())
    return [TagRow(tag=tag, position=position) for position, tag in enumerate(distinct)]


class Measured(NamedTuple):
    """The speed of an earlier run."""

    run_name: str
    tokens_per_second: float
    same_size: bool
    """Whether its SAE had the same number of latents and the same k."""
    sae_share: float
    """Share of its time spent in the SAE rather than the language model; 1 if unknown."""


def measured_speed(session: Session, device: str, config: RunConfig) -> Measured | None:
    """The latest speed measured on a device with the same model and site, preferably with an SAE
    of the same size. With `data.train_roles`, only runs on the same conversations count, because
    their share of tokens that are read but not trained on decides the speed.
    """
    rows = session.scalars(
        select(RunRow)
        .where(RunRow.device == device, RunRow.tokens_per_second.is_not(None))
        .order_by(RunRow.seq.desc())
        .limit(COMPARED_RUNS)
    )
    nearest: Measured | None = None
    for row in rows:
        try:
            other = config_of(row)
        except UnreadableConfigError:
            continue
        if _reading(other) != _reading(config):
            continue
        same_size = _size(other) == _size(config)
        speed = _speed(row)
        if speed and (same_size or nearest is None):
            nearest = Measured(row.name, speed, same_size, _sae_share(row))
        if nearest is not None and nearest.same_size:
            break
    return nearest


def _speed(row: RunRow) -> float | None:
    """Tokens per second over the whole run, loading and evaluation included, if it finished
    without being resumed; otherwise of its latest points.
    """
    if row.status == "finished" and row.queued_at == row.created_at:
        assert row.started_at is not None
        assert row.ended_at is not None
        seconds = (row.ended_at - row.started_at).total_seconds()
        return row.tokens / seconds if seconds > 0 else None
    return row.tokens_per_second


def _sae_share(row: RunRow) -> float:
    share = row.latest_metrics.get("sae_share")
    return share if isinstance(share, float) and 0 <= share <= 1 else 1.0


def _reading(config: RunConfig) -> tuple[object, ...]:
    """What decides the time to read a token that is trained on."""
    roles = config.data.train_roles
    return config.model.name, config.hook_name, roles, roles and config.data.title


def _size(config: RunConfig) -> tuple[int | None, float | None, int]:
    return config.sae.d_sae, config.sae.expansion_factor, config.sae.k
