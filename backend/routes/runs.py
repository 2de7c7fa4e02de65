"""Runs: made, listed, changed, stopped, resumed, deleted."""

from __future__ import annotations

import hashlib
import shutil
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy.orm import Session

from backend import store
from backend.errors import ConflictError, UnprocessableError
from backend.http.security import check_paths
from backend.http.services import Server, Services
from backend.jobs.naming import named_config
from backend.store.models import RunRow
from sae_engine.preflight import check_config
from sae_engine.presets import resolve_config
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import Run, RunCreate, RunPage, RunPatch, RunSort, RunStatus

router = APIRouter(prefix="/runs", tags=["runs"])


@router.post("", status_code=201)
def create_run(
    body: RunCreate,
    server: Server,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Run:
    """Queue a run. The same `Idempotency-Key` with the same body answers with the run it made
    before.
    """
    run = queue_run(server, body, idempotency_key, request_digest(body))
    response.headers["Location"] = f"/api/runs/{run.id}"
    return run


def request_digest(body: RunCreate) -> str:
    """What tells a request from another one that carries the same `Idempotency-Key`."""
    try:
        described = body.model_dump_json()
    except ValueError:  # pydantic: too deep
        raise UnprocessableError(
            "The configuration is nested too deeply; it has sections and fields in them.",
            kind="invalid",
        ) from None
    return hashlib.sha256(f"{type(body).__name__} {described}".encode()).hexdigest()


def queue_run(server: Services, body: RunCreate, idempotency_key: str | None, digest: str) -> Run:
    """Check what is asked for and queue it, unless the same request has done so before."""
    config = resolve_config(body.preset, body.config)
    check_paths(config, [server.settings.data_dir, *server.settings.read_dirs])
    check_config(config)
    server.supervisor.places([]).require(config.model.device)
    with server.database.writing() as session:
        row = None
        if idempotency_key is not None:
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
        [run] = server.shapes(session, [row])
    server.supervisor.wake()
    return run


@router.get("")
def list_runs(
    server: Server,
    status: Annotated[list[RunStatus] | None, Query()] = None,
    q: Annotated[str, Query(max_length=200)] = "",
    tag: Annotated[list[str] | None, Query(max_length=50)] = None,
    group_id: Annotated[str | None, Query(max_length=40)] = None,
    archived: bool = False,
    sort: RunSort = "created",
    order: SortOrder | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
) -> RunPage:
    """Runs with all the tags given, newest first. `q` looks in names, notes, tags and the beginning
    of ids. `sort` by a metric has the lowest first unless `order` says otherwise, by status the
    order of a run's life; runs without a value come last.
    """
    wanted = store.RunFilter(status or (), q, tag or (), group_id, archived)
    with server.database.reading() as session:
        page = store.list_runs(session, wanted, sort=sort, order=order, limit=limit, cursor=cursor)
        items = server.shapes(session, page.rows)
    return RunPage(items=items, next_cursor=page.next_cursor, total=page.total)


@router.get("/{run_id}")
def get_run(run_id: str, server: Server) -> Run:
    with server.database.reading() as session:
        return _shape(server, session, store.get_run(session, run_id))


@router.patch("/{run_id}")
def update_run(run_id: str, body: RunPatch, server: Server) -> Run:
    """Change a run's name, tags, notes or place in the queue, or put it away."""
    with server.database.writing() as session:
        row = store.patch_run(session, run_id, body)
        return _shape(server, session, row)


@router.delete("/{run_id}", status_code=204)
def delete_run(run_id: str, server: Server) -> None:
    """Delete a run, its folder and what was computed from it; refused while it runs."""
    with server.database.writing() as session:
        store.delete_run(session, run_id)
    folder = server.settings.run_folder(run_id).path
    if folder.is_symlink():  # its files were kept elsewhere by choice, and stay
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    server.analyses.forget(run_id)


@router.post("/{run_id}/stop", status_code=202)
def stop_run(run_id: str, server: Server, force: bool = False) -> Run:
    """End a run soon, with a usable SAE and its features; `force` skips the features."""
    with server.database.writing() as session:
        run = _shape(server, session, store.request_stop(session, run_id, force=force))
    server.supervisor.wake()
    return run


@router.post("/{run_id}/resume", status_code=202)
def resume_run(run_id: str, server: Server) -> Run:
    """Queue an ended run to go on from its last checkpoint, on its own curve."""
    with server.database.writing() as session:
        row = store.requeue(session, run_id)
        if not server.settings.run_folder(run_id).has_checkpoint:
            raise ConflictError(
                f"The run '{row.name}' ended before its first checkpoint; try it again from its "
                "beginning (retry).",
                kind="no-checkpoint",
            )
        run = _shape(server, session, row)
    server.supervisor.wake()
    return run


@router.post("/{run_id}/retry", status_code=202)
def retry_run(run_id: str, server: Server) -> Run:
    """Queue an ended run again: from its last checkpoint, or from its beginning if it has none."""
    with server.database.writing() as session:
        run = _shape(server, session, store.requeue(session, run_id))
    server.supervisor.wake()
    return run


def _shape(server: Services, session: Session, row: RunRow) -> Run:
    [run] = server.shapes(session, [row])
    return run
