"""A run's SAE in another program's format, as one file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from backend import repository
from backend.errors import ConflictError
from backend.services import Server
from sae_engine.interop.export import export_saelens
from sae_engine.schema.api import ExportFormat

router = APIRouter(prefix="/runs/{run_id}", tags=["runs"])


@router.get("/export", response_class=FileResponse)
def export_run(
    run_id: str, server: Server, format: Annotated[ExportFormat, Query()] = "saelens"
) -> FileResponse:
    """A zip of a folder that SAELens's `SAE.load_from_disk` reads."""
    with server.database.reading() as session:
        row = repository.get_run(session, run_id)
    folder = server.settings.run_folder(run_id)
    if not folder.sae.exists():
        raise ConflictError(f"The run '{row.name}' has no SAE to export.", kind="no-sae")
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=server.settings.data_dir))
    try:
        name = f"{row.id}-{format}"
        export_saelens(folder, scratch / name)
        made = shutil.make_archive(str(scratch / name), "zip", scratch, name)
    except BaseException:
        shutil.rmtree(scratch)
        raise
    return FileResponse(
        made,
        media_type="application/zip",
        filename=f"{name}.zip",
        background=BackgroundTask(shutil.rmtree, scratch),
    )
