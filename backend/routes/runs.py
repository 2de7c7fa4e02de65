"""Runs: create (alone, as a sweep, or from an SAE file), list, change, stop, resume, delete."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from backend import store
from backend.errors import ConflictError, UnprocessableError
from backend.http.configs import check_runnable, readable_sae, with_local_files
from backend.http.parameters import IdempotencyKey, PageLimit
from backend.http.services import Services, ServicesDep
from backend.jobs.imports import import_request, remove_unpacked
from backend.jobs.naming import member_config, named_config
from backend.store.models import RunRow
from sae_engine.presets import expand_grid, resolve_config
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import (
    ImportCreate,
    Run,
    RunCreate,
    RunPage,
    RunPatch,
    RunSort,
    RunStatus,
    Sweep,
    SweepCreate,
    TagCount,
)

router = APIRouter(tags=["runs"])


@router.post("/runs", status_code=201)
def create_run(
    body: RunCreate,
    services: ServicesDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Run:
    """Queue a run. Repeating a request with the same `Idempotency-Key` returns the same run."""
    return _queue_once(services, body, lambda: body, idempotency_key, response)


@router.post("/imports", status_code=201)
def create_import(
    body: ImportCreate,
    services: ServicesDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Run:
    """Queue a run that trains nothing: it evaluates the SAE at `path` and indexes its features."""

    def request() -> RunCreate:
        path = readable_sae(services, body.path)
        return import_request(body.model_copy(update={"path": path}))

    return _queue_once(services, body, request, idempotency_key, response)


@router.post("/sweeps", status_code=201)
def create_sweep(
    body: SweepCreate, services: ServicesDep, idempotency_key: IdempotencyKey = None
) -> Sweep:
    """Queue a run for every combination of the grid's values; none if one of them is invalid."""
    digest = _digest(body)
    with services.database.reading() as session:
        first = store.earlier_request(session, idempotency_key, digest)
        if first is not None:
            return _sweep_of(services, session, first)
    members = [
        (label, with_local_files(services, config))
        for label, config in expand_grid(body.preset, body.config, body.grid)
    ]
    check_runnable(services, [config for _, config in members])
    with services.database.writing() as session:
        first = store.earlier_request(session, idempotency_key, digest)
        if first is None:
            group_id = secrets.token_hex(5)
            first, *_ = [
                store.add_run(
                    session,
                    config=member_config(config, body, label),
                    tags=body.tags,
                    notes=body.notes,
                    group_id=group_id,
                    idempotency_key=idempotency_key if number == 0 else None,
                    request_digest=digest,
                )
                for number, (label, config) in enumerate(members)
            ]
        sweep = _sweep_of(services, session, first)
    services.supervisor.wake()
    return sweep


def _sweep_of(services: Services, session: Session, first: RunRow) -> Sweep:
    """The sweep of its first run."""
    group_id = first.group_id or ""
    return Sweep(id=group_id, runs=services.run_shapes(session, store.group(session, group_id)))


def _digest(body: RunCreate) -> str:
    """Hash that distinguishes requests with the same `Idempotency-Key`."""
    try:
        described = json.dumps(body.model_dump())
    except (ValueError, RecursionError):
        raise UnprocessableError(
            "The configuration is nested too deeply; it consists of sections with fields.",
            kind="invalid",
        ) from None
    return hashlib.sha256(f"{type(body).__name__} {described}".encode()).hexdigest()


def _queue_once(
    services: Services,
    body: RunCreate,
    request: Callable[[], RunCreate],
    idempotency_key: str | None,
    response: Response,
) -> Run:
    """The run of an earlier request with this key; otherwise queue what `request` returns."""
    digest = _digest(body)
    with services.database.reading() as session:
        row = store.earlier_request(session, idempotency_key, digest)
        run = None if row is None else services.run_shape(session, row)
    if run is None:
        run = _queue_run(services, request(), idempotency_key, digest)
    response.headers["Location"] = f"{services.settings.base_path}/api/runs/{run.id}"
    return run


def _queue_run(
    services: Services, body: RunCreate, idempotency_key: str | None, digest: str
) -> Run:
    """Check and store a run, unless a request with the key has stored one meanwhile."""
    config = with_local_files(services, resolve_config(body.preset, body.config))
    check_runnable(services, [config])
    with services.database.writing() as session:
        row = store.earlier_request(session, idempotency_key, digest)
        if row is None:
            row = store.add_run(
                session,
                config=named_config(config, body),
                tags=body.tags,
                notes=body.notes,
                cloned_from=body.cloned_from,
                idempotency_key=idempotency_key,
                request_digest=digest,
            )
        run = services.run_shape(session, row)
    services.supervisor.wake()
    return run


@router.get("/runs")
def list_runs(
    services: ServicesDep,
    status: Annotated[list[RunStatus] | None, Query()] = None,
    q: Annotated[str, Query(max_length=200)] = "",
    tag: Annotated[list[str] | None, Query(max_length=50)] = None,
    group_id: Annotated[str | None, Query(max_length=40)] = None,
    archived: bool = False,
    sort: RunSort = "created",
    order: SortOrder | None = None,
    limit: PageLimit = 50,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
) -> RunPage:
    """A page of runs that have all the tags given, newest first.

    `q` searches names, notes, tags and the beginning of ids. Without `order`, metrics are sorted
    lowest first, and `status` in the order of a run's life. Runs without a value come last.
    """
    wanted = store.RunFilter(status or (), q, tag or (), group_id, archived)
    with services.database.reading() as session:
        page = store.list_runs(session, wanted, sort=sort, order=order, limit=limit, cursor=cursor)
        items = services.run_shapes(session, page.rows)
    return RunPage(items=items, next_cursor=page.next_cursor, total=page.total)


@router.get("/tags")
def list_tags(services: ServicesDep) -> list[TagCount]:
    """Every tag and the number of runs with it, most frequent first."""
    with services.database.reading() as session:
        return store.count_tags(session)


@router.get("/runs/{run_id}")
def get_run(run_id: str, services: ServicesDep) -> Run:
    """One run."""
    with services.database.reading() as session:
        return services.run_shape(session, store.get_run(session, run_id))


@router.patch("/runs/{run_id}")
def update_run(run_id: str, body: RunPatch, services: ServicesDep) -> Run:
    """Change a run's name, tags, notes or queue position, or archive it."""
    with services.database.writing() as session:
        return services.run_shape(session, store.patch_run(session, run_id, body))


@router.delete("/runs/{run_id}", status_code=204)
def delete_run(run_id: str, services: ServicesDep) -> None:
    """Delete a run with its folder and everything computed from it; refused while it runs."""
    with services.database.writing() as session:
        imported = store.delete_run(session, run_id)
        in_use = store.imported_saes(session) if imported is not None else ()
    folder = services.settings.run_folder(run_id).path
    if folder.is_symlink():  # the user keeps its files elsewhere; leave them there
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if imported is not None:
        remove_unpacked(services.settings, imported, in_use)
    services.analyses.forget(run_id)


@router.post("/runs/{run_id}/stop", status_code=202)
def stop_run(run_id: str, services: ServicesDep, force: bool = False) -> Run:
    """End a run soon, with a usable SAE and its features; `force` skips the features."""
    with services.database.writing() as session:
        run = services.run_shape(session, store.request_stop(session, run_id, force=force))
    services.supervisor.wake()
    return run


@router.post("/runs/{run_id}/resume", status_code=202)
def resume_run(run_id: str, services: ServicesDep) -> Run:
    """Queue a run that ended early; it continues its own curves from its last checkpoint."""
    return _requeue(run_id, services, needs_checkpoint=True)


@router.post("/runs/{run_id}/retry", status_code=202)
def retry_run(run_id: str, services: ServicesDep) -> Run:
    """Queue a run that ended early again: from its last checkpoint, or from the beginning."""
    return _requeue(run_id, services, needs_checkpoint=False)


def _requeue(run_id: str, services: Services, *, needs_checkpoint: bool) -> Run:
    with services.database.writing() as session:
        row = store.requeue(session, run_id)
        if needs_checkpoint and not services.settings.run_folder(run_id).has_checkpoint:
            raise ConflictError(
                f"The run '{row.name}' ended before its first checkpoint; retry it from the "
                "beginning.",
                kind="no-checkpoint",
            )
        run = services.run_shape(session, row)
    services.supervisor.wake()
    return run
