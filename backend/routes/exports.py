"""A run as one file for other programs: its SAE, or its features."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from backend import store
from backend.errors import ConflictError
from backend.http.indexes import open_index
from backend.http.services import Server, Services
from backend.routes.features import SnapshotStep
from backend.settings import STYLE_SHEET
from backend.store.labels import written_labels
from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import check_room, export_features
from sae_engine.files import room_needed
from sae_engine.interop.export import export_saelens
from sae_engine.schema.exports import EXPORT_FORMATS, ExportFormat

router = APIRouter(prefix="/runs/{run_id}", tags=["runs"])

PIECE_BYTES = 1 << 20


@router.get("/export", response_class=StreamingResponse)
def export_run(
    run_id: str,
    server: Server,
    format: Annotated[ExportFormat, Query()] = "saelens",
    snapshot: SnapshotStep = None,
    include_dead: Annotated[
        bool, Query(description="Export also features that never fired.")
    ] = False,
) -> StreamingResponse:
    """A zip of a folder: the SAE as SAELens's `SAE.load_from_disk` reads it, or the features of a
    snapshot as static pages, JSON lines, what Neuronpedia imports, or Parquet.
    """
    name = f"{run_id}-{format}"
    with (
        _turn(server, format),
        room_needed(server.settings.data_dir),
        TemporaryDirectory(prefix=".export-", dir=server.settings.data_dir) as scratch,
    ):
        folder = Path(scratch) / name
        if EXPORT_FORMATS[format].writer is None:
            _write_sae(server, run_id, folder)
        else:
            source = _source(server, run_id, snapshot, include_dead)
            export_features(source, format, folder)
        check_room(folder, sum(file.stat().st_size for file in folder.rglob("*")))
        made = Path(shutil.make_archive(str(folder), "zip", scratch, name))
        # Once its name is gone, whatever ends the download frees the disk.
        file = made.open("rb")
    return StreamingResponse(
        _pieces(file),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="{name}.zip"',
            "Content-Length": str(os.fstat(file.fileno()).st_size),
        },
    )


@contextmanager
def _turn(server: Services, format: ExportFormat) -> Generator[None]:
    """Features are exported once at a time; raises `ConflictError` for a second time."""
    if EXPORT_FORMATS[format].writer is None:
        yield
        return
    if not server.exporting.acquire(blocking=False):
        raise ConflictError(
            "Another export is being written; try again when it is done.", kind="exporting"
        )
    try:
        yield
    finally:
        server.exporting.release()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _write_sae(server: Services, run_id: str, target: Path) -> None:
    with server.database.reading() as session:
        row = store.get_run(session, run_id)
    folder = server.settings.run_folder(run_id)
    if not folder.sae.exists():
        raise ConflictError(f"The run '{row.name}' has no SAE to export.", kind="no-sae")
    export_saelens(folder, target)


def _source(
    server: Services, run_id: str, snapshot: int | None, include_dead: bool
) -> ExportSource:
    with server.database.reading() as session:
        index = open_index(server, session, run_id, snapshot)
        row = store.get_run(session, run_id)
        labels = written_labels(session, run_id)
    return ExportSource(
        index=index,
        run_id=run_id,
        run_name=row.name,
        config=store.config_of(row),
        labels=labels,
        include_dead=include_dead,
        style=STYLE_SHEET.read_text("utf-8"),
    )
