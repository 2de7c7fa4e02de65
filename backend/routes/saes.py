"""SAEs elsewhere: what the files of one say before it is imported, and pushes to the hub."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend import store
from backend.errors import ConflictError
from backend.http.configs import readable_sae
from backend.http.services import ServicesDep
from backend.jobs.imports import found_sae
from backend.jobs.pushes import pushed_run, require_allowed
from sae_engine.interop.push import push_sae
from sae_engine.schema.saes import FoundSAE, PushCreate, Pushed

router = APIRouter(tags=["runs"])


@router.post("/runs/{run_id}/push", status_code=201)
def push_run(run_id: str, body: PushCreate, services: ServicesDep) -> Pushed:
    """Push a run's SAE to the Hugging Face hub in one commit, with a model card.

    Uses this server's `HF_TOKEN`, so only for owners and repositories in
    `SAE_WORKBENCH_PUSH_TO`; answers when everything is there.
    """
    with services.database.reading() as session:
        run = pushed_run(services.settings, store.get_run(session, run_id))
    require_allowed(services.settings, body.target)
    if not services.exporting.acquire(blocking=False):
        raise ConflictError(
            "Another export is in progress; try again when it is finished.", kind="exporting"
        )
    try:
        return push_sae(run, body.target, private=body.private)
    finally:
        services.exporting.release()


@router.get("/imports/found")
def find_sae(
    path: Annotated[str, Query(min_length=1, max_length=500)], services: ServicesDep
) -> FoundSAE:
    """What the files of the SAE at `path`, or at `hub:OWNER/NAME/PATH`, say about it.

    Only its settings are read; of the hub, nothing else is downloaded.
    """
    return found_sae(readable_sae(services, path)).model_copy(update={"path": path})
