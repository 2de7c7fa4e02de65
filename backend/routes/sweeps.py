"""Sweeps: many runs made at once, which share passes of the language model."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Header

from backend import store
from backend.http.security import check_paths
from backend.http.services import Server
from backend.jobs.naming import member_config
from backend.routes.runs import request_digest
from sae_engine.preflight import check_config
from sae_engine.presets import expand_grid
from sae_engine.schema.runs import Sweep, SweepCreate

router = APIRouter(prefix="/sweeps", tags=["runs"])


@router.post("", status_code=201)
def create_sweep(
    body: SweepCreate,
    server: Server,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Sweep:
    """Queue a run for every combination of the grid's values; all of them or, if one is wrong,
    none.
    """
    digest = request_digest(body)
    members = expand_grid(body.preset, body.config, body.grid)
    for _, config in members:
        check_paths(config, [server.settings.data_dir, *server.settings.read_dirs])
        check_config(config)
        server.supervisor.places([]).require(config.model.device)
    with server.database.writing() as session:
        first = None
        if idempotency_key is not None:
            first = store.earlier_request(session, idempotency_key, digest)
        if first is None:
            group_id = secrets.token_hex(5)
            rows = [
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
        else:
            rows = store.group(session, first.group_id or "")
            group_id = first.group_id or ""
        runs = server.shapes(session, rows)
    server.supervisor.wake()
    return Sweep(id=group_id, runs=runs)
