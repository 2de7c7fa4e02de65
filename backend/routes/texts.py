"""Texts to train on: files uploaded to the data folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from backend.errors import ConflictError, TooLargeError, UnavailableError, UnprocessableError
from backend.http.problems import MAX_UPLOAD_BYTES, UPLOAD_TOO_LARGE, UPLOADS
from backend.http.services import MAX_UPLOADS, ServicesDep
from backend.jobs.texts import FOLDER, safe_name, texts_folder
from sae_engine.errors import ConfigError
from sae_engine.files import room_needed
from sae_engine.schema.texts import UploadedText
from sae_engine.scratch import scratch_folder
from sae_engine.text.preview import text_column_of

router = APIRouter(tags=["runs"])

WRITE_BYTES = 2**20
"""Received parts are written to disk in pieces of at least this size."""
BUSY_SECONDS = 10
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}


@router.post(
    UPLOADS,
    status_code=201,
    max_body_size=MAX_UPLOAD_BYTES + 1,
    openapi_extra={"requestBody": {"required": True, "description": "The file.", **_BINARY}},
)
async def upload_text(
    request: Request,
    services: ServicesDep,
    name: Annotated[
        str, Query(min_length=1, max_length=1_000, description="Name of the file, with its ending.")
    ],
) -> UploadedText:
    """Store the request's body as a file in the data folder; refused if one has that name."""
    target = _target(texts_folder(services.settings), name)
    if services.uploads.locked():
        raise UnavailableError(
            f"{MAX_UPLOADS} other files are being uploaded; try again when one is done.",
            kind="uploading",
            retry_after_seconds=BUSY_SECONDS,
        )
    async with services.uploads:
        await _receive(request, target)
    column = await run_in_threadpool(_text_column, target)
    return _shape(target).model_copy(update={"text_column": column})


@router.get(UPLOADS)
def list_texts(services: ServicesDep) -> list[UploadedText]:
    """The uploaded files, in order of their names."""
    folder = texts_folder(services.settings)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [_shape(path) for path in files if path.is_file() and not path.name.startswith(".")]


def _target(folder: Path, name: str) -> Path:
    safe = safe_name(name)
    if not safe:
        raise UnprocessableError(
            "The file's name holds no letter or digit; rename the file.", kind="invalid"
        )
    target = folder / safe
    if target.exists():
        raise _exists(target)
    return target


def _exists(target: Path) -> ConflictError:
    return ConflictError(
        f"The data folder already has a file '{FOLDER}/{target.name}'; rename yours, or train on "
        f"that one with data.dataset = {FOLDER}/{target.name}.",
        kind="text-exists",
    )


async def _receive(request: Request, target: Path) -> None:
    """Write the body to `target`, which appears when it is complete. Raises `ApiError`, and
    `DiskFullError`, which leave nothing behind.
    """
    with room_needed(target.parent), scratch_folder(target.parent, "upload") as scratch:
        temporary = scratch / target.name
        with temporary.open("xb") as file:
            size, waiting = 0, bytearray()
            async for part in request.stream():
                size += len(part)
                if size > MAX_UPLOAD_BYTES:
                    raise TooLargeError(UPLOAD_TOO_LARGE, kind="too-large")
                waiting += part
                if len(waiting) >= WRITE_BYTES:
                    await run_in_threadpool(file.write, waiting)
                    waiting = bytearray()
            file.write(waiting)
        if not size:
            raise UnprocessableError("The file is empty; choose one with text.", kind="empty")
        await run_in_threadpool(_publish, temporary, target)


def _publish(temporary: Path, target: Path) -> None:
    """Give a file its name unless another file has it."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        temporary.rename(target)  # a file system without links


def _text_column(path: Path) -> str | None:
    try:
        return text_column_of(path)
    except ConfigError:  # damaged, or not what its name says, as the preview reports
        return None


def _shape(path: Path) -> UploadedText:
    size = path.stat().st_size
    return UploadedText(path=f"{FOLDER}/{path.name}", bytes=size, text_column=None)
