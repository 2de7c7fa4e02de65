"""SAEs elsewhere: uploads of one, what its files say before it is imported, pushes to the hub."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, Query, Request

from backend import store
from backend.errors import ConflictError, UnprocessableError
from backend.http.configs import readable_sae
from backend.http.problems import MAX_UPLOAD_BYTES, SAE_UPLOADS
from backend.http.services import ServicesDep
from backend.http.uploads import FILE_BODY, Destination, FileName, store_upload
from backend.jobs.imports import FOLDER, found_sae
from backend.jobs.pushes import pushed_run, require_allowed
from sae_engine.interop.push import push_sae
from sae_engine.schema.saes import FoundSAE, PushCreate, Pushed, UploadedSAE

router = APIRouter(tags=["runs"])

UPLOADED = (".zip", ".safetensors", ".npz")
"""Endings of files that can be uploaded."""


@router.post("/runs/{run_id}/push", status_code=201)
def push_run(run_id: str, body: PushCreate, services: ServicesDep) -> Pushed:
    """Push a run's SAE to the Hugging Face hub in one commit, with a model card.

    Uses this server's `HF_TOKEN`, so only for owners and repositories in
    `SAE_WORKBENCH_PUSH_TO`; answers when everything is there.
    """
    with services.database.reading() as session:
        run = pushed_run(services.settings, session, store.get_run(session, run_id))
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


@router.post(
    SAE_UPLOADS, status_code=201, max_body_size=MAX_UPLOAD_BYTES + 1, openapi_extra=FILE_BODY
)
async def upload_sae(request: Request, services: ServicesDep, name: FileName) -> UploadedSAE:
    """Store the request's body, a `.zip`, `.safetensors` or `.npz`, in the data folder; refused if
    a file has that name.
    """
    if PurePath(name).suffix.lower() not in UPLOADED:
        raise UnprocessableError(
            f"'{name:.80}' is not a {', '.join(UPLOADED[:-1])} or {UPLOADED[-1]} file; put the "
            "SAE's folder into a .zip.",
            kind="invalid",
        )
    folder = services.settings.data_dir / FOLDER
    destination = Destination(folder, "sae", "an SAE", "import that one from {path}")
    target = await store_upload(request, services, name, destination)
    return UploadedSAE(path=f"{FOLDER}/{target.name}", bytes=target.stat().st_size)
