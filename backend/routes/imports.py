"""SAEs that were trained elsewhere: registered as runs that evaluate and index them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from backend.http.services import Server
from backend.jobs.imports import import_request
from backend.routes.runs import queue_run, request_digest
from sae_engine.schema.runs import ImportCreate, Run

router = APIRouter(prefix="/imports", tags=["runs"])


@router.post("", status_code=201)
def create_import(
    body: ImportCreate,
    server: Server,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Run:
    """Queue a run that trains nothing: it evaluates the SAE at `path` and builds its features."""
    run = queue_run(server, import_request(body), idempotency_key, request_digest(body))
    response.headers["Location"] = f"/api/runs/{run.id}"
    return run
