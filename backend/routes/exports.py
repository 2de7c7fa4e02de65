"""Exports of a run for other programs: its SAE or its features, as a zip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from backend import store
from backend.errors import ConflictError
from backend.http.indexes import open_index
from backend.http.parameters import SnapshotStep
from backend.http.services import Services, ServicesDep
from backend.settings import STYLE_SHEET
from backend.store.labels import written_labels
from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import check_room, export_features
from sae_engine.files import room_needed
from sae_engine.interop.export import export_saelens, published_step
from sae_engine.schema.exports import EXPORT_FORMATS, ExportFormat, ExportProgress, file_name
from sae_engine.scratch import scratch_folder

router = APIRouter(tags=["runs"])

CHUNK_BYTES = 1 << 20


@router.get("/runs/{run_id}/export", response_class=StreamingResponse)
def export_run(
    run_id: str,
    services: ServicesDep,
    format: Annotated[ExportFormat, Query()] = "saelens",
    snapshot: SnapshotStep = None,
    include_dead: Annotated[
        bool, Query(description="Also export features that never fired.")
    ] = False,
    request: Annotated[
        str | None,
        Query(max_length=40, description="A name of your choice, for `/exports/{request}`."),
    ] = None,
) -> StreamingResponse:
    """A zip of the SAE as SAELens's `SAE.load_from_disk` reads it, or of a snapshot's features as
    static pages, JSON lines, Neuronpedia's import format or Parquet.
    """
    report = partial(services.exports.report, request)
    with (
        services.exports.reported(request),
        _exclusive(services, format),
        room_needed(services.settings.data_dir),
        scratch_folder(services.settings.data_dir, "export") as scratch,
    ):
        if EXPORT_FORMATS[format].writer is None:
            report(ExportProgress(state="running", phase="copying the SAE"))
            folder = _write_sae(services, run_id, scratch)
        else:
            source = _export_source(services, run_id, snapshot, include_dead, report)
            step = source.index.manifest.step
            folder = scratch / file_name(source.run_name, step, format)
            export_features(source, format, folder)
        report(ExportProgress(state="running", phase="compressing"))
        check_room(folder, sum(file.stat().st_size for file in folder.rglob("*")))
        archive = Path(shutil.make_archive(str(folder), "zip", scratch, folder.name))
        # The open file outlives its name, so its disk space is freed however the download ends.
        file = archive.open("rb")
    report(ExportProgress(state="done", phase="downloading", fraction=1.0, file=archive.name))
    return StreamingResponse(
        _chunks(file),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="{archive.name}"',
            "Content-Length": str(os.fstat(file.fileno()).st_size),
        },
    )


@router.get("/exports/{request}")
def get_export_progress(request: str, services: ServicesDep) -> ExportProgress:
    """How far the export is that named itself `request`; 404 before it begins."""
    return services.exports.of(request)


@contextmanager
def _exclusive(services: Services, format: ExportFormat) -> Generator[None]:
    """Hold the lock for exports of features; raises `ConflictError` if it is taken."""
    if EXPORT_FORMATS[format].writer is None:
        yield
        return
    if not services.exporting.acquire(blocking=False):
        raise ConflictError(
            "Another export is in progress; try again when it is finished.", kind="exporting"
        )
    try:
        yield
    finally:
        services.exporting.release()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _write_sae(services: Services, run_id: str, scratch: Path) -> Path:
    """Write the SAE into a new folder below `scratch`; returns the folder."""
    with services.database.reading() as session:
        row = store.get_run(session, run_id)
    folder = services.settings.run_folder(run_id)
    if not folder.sae.exists():
        raise ConflictError(f"The run '{row.name}' has no SAE to export.", kind="no-sae")
    step = published_step(folder)  # the run may have trained on since
    target = scratch / file_name(row.name, row.step if step is None else step, "saelens")
    export_saelens(folder, target)
    return target


def _export_source(
    services: Services,
    run_id: str,
    snapshot: int | None,
    include_dead: bool,
    report: Callable[[ExportProgress], None],
) -> ExportSource:
    def report_share(share: float) -> None:
        report(ExportProgress(state="running", phase="writing features", fraction=share))

    with services.database.reading() as session:
        index = open_index(services, session, run_id, snapshot)
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
        report=report_share,
    )
