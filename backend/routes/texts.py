"""Texts to train on: files uploaded to the data folder."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from backend.http.problems import MAX_UPLOAD_BYTES, UPLOADS
from backend.http.services import ServicesDep
from backend.http.uploads import FILE_BODY, Destination, FileName, store_upload
from backend.jobs.texts import FOLDER, texts_folder
from sae_engine.errors import ConfigError
from sae_engine.schema.texts import UploadedText
from sae_engine.text.preview import text_column_of

router = APIRouter(tags=["runs"])


@router.post(UPLOADS, status_code=201, max_body_size=MAX_UPLOAD_BYTES + 1, openapi_extra=FILE_BODY)
async def upload_text(request: Request, services: ServicesDep, name: FileName) -> UploadedText:
    """Store the request's body as a file in the data folder; refused if one has that name."""
    folder = texts_folder(services.settings)
    instead = "train on that one with data.dataset = {path}"
    target = await store_upload(
        request, services, name, Destination(folder, "text", "text", instead)
    )
    column = await run_in_threadpool(_text_column, target)
    return _shape(target).model_copy(update={"text_column": column})


@router.get(UPLOADS)
def list_texts(services: ServicesDep) -> list[UploadedText]:
    """The uploaded files, in order of their names."""
    folder = texts_folder(services.settings)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [_shape(path) for path in files if path.is_file() and not path.name.startswith(".")]


def _text_column(path: Path) -> str | None:
    try:
        return text_column_of(path)
    except ConfigError:  # damaged, or not what its name says, as the preview reports
        return None


def _shape(path: Path) -> UploadedText:
    size = path.stat().st_size
    return UploadedText(path=f"{FOLDER}/{path.name}", bytes=size, text_column=None)
