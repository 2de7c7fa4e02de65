"""A run as one file for other programs: its SAE, or its features."""

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
from backend.exports import STYLE
from backend.indexes import open_index
from backend.label_repository import written_labels
from backend.routes.features import SnapshotStep
from backend.services import Server, Services
from sae_engine.feature_export.source import ExportSource
from sae_engine.feature_export.write import check_room, export_features
from sae_engine.interop.export import export_saelens
from sae_engine.schema.api import ExportFormat
from sae_engine.schema.config import RunConfig

router = APIRouter(prefix="/runs/{run_id}", tags=["runs"])


@router.get("/export", response_class=FileResponse)
def export_run(
    run_id: str,
    server: Server,
    format: Annotated[ExportFormat, Query()] = "saelens",
    snapshot: SnapshotStep = None,
    include_dead: Annotated[
        bool, Query(description="Export also features that never fired.")
    ] = False,
) -> FileResponse:
    """A zip of a folder: the SAE as SAELens's `SAE.load_from_disk` reads it, or the features of a
    snapshot as static pages, JSON lines, what Neuronpedia imports, or Parquet.
    """
    if not server.exporting.acquire(blocking=False):
        raise ConflictError(
            "Another export is being written; try again when it is done.", kind="exporting"
        )
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=server.settings.data_dir))
    name = f"{run_id}-{format}"
    try:
        if format == "saelens":
            _write_sae(server, run_id, scratch / name)
        else:
            source = _source(server, run_id, snapshot, include_dead)
            style = STYLE.read_text("utf-8")
            export_features(source, format, scratch / name, style=style)
        check_room(scratch, sum(file.stat().st_size for file in (scratch / name).rglob("*")))
        made = shutil.make_archive(str(scratch / name), "zip", scratch, name)
        shutil.rmtree(scratch / name)
    except BaseException:
        shutil.rmtree(scratch)
        raise
    finally:
        server.exporting.release()
    return FileResponse(
        made,
        media_type="application/zip",
        filename=f"{name}.zip",
        background=BackgroundTask(shutil.rmtree, scratch),
    )


def _write_sae(server: Services, run_id: str, target: Path) -> None:
    with server.database.reading() as session:
        row = repository.get_run(session, run_id)
    folder = server.settings.run_folder(run_id)
    if not folder.sae.exists():
        raise ConflictError(f"The run '{row.name}' has no SAE to export.", kind="no-sae")
    export_saelens(folder, target)


def _source(
    server: Services, run_id: str, snapshot: int | None, include_dead: bool
) -> ExportSource:
    with server.database.reading() as session:
        index = open_index(server, session, run_id, snapshot)
        row = repository.get_run(session, run_id)
        labels = written_labels(session, run_id)
    return ExportSource(
        index=index,
        run_id=run_id,
        run_name=row.name,
        config=RunConfig.model_validate(row.config),
        labels=labels,
        include_dead=include_dead,
    )
