"""Files that a client uploads to the data folder: stored whole or not at all, under safe names.

Called by `routes.texts` and `routes.saes`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool

from backend.errors import ConflictError, TooLargeError, UnavailableError, UnprocessableError
from backend.http.problems import MAX_UPLOAD_BYTES, UPLOAD_TOO_LARGE
from backend.http.services import MAX_UPLOADS, Services
from backend.jobs.texts import safe_name
from sae_engine.files import room_needed
from sae_engine.scratch import scratch_folder

WRITE_BYTES = 2**20
"""Received parts are written to disk in pieces of at least this size."""
UPLOAD_RETRY_SECONDS = 10
"""When a client that may not upload now may try again."""
FileName = Annotated[
    str, Query(min_length=1, max_length=1_000, description="Name of the file, with its ending.")
]
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
FILE_BODY = {"requestBody": {"required": True, "description": "The file.", **_BINARY}}
"""Of an endpoint that receives a file, for the OpenAPI document."""


class Destination(NamedTuple):
    """Where files of a kind are stored."""

    folder: Path
    """In the data folder."""
    kind: str
    content: str
    """What a file should hold, in words."""
    instead: str
    """How to use a file that is there already, with `{path}`."""


async def store_upload(
    request: Request, services: Services, name: str, destination: Destination
) -> Path:
    """Store the request's body as a file; refused if one has that name. Raises `ApiError`."""
    target = _target(destination, name)
    if services.uploads.locked():
        raise UnavailableError(
            f"{MAX_UPLOADS} other files are being uploaded; try again when one is done.",
            kind="uploading",
            retry_after_seconds=UPLOAD_RETRY_SECONDS,
        )
    async with services.uploads:
        await _receive(request, target, destination)
    return target


def _target(destination: Destination, name: str) -> Path:
    safe = safe_name(name)
    if not safe:
        raise UnprocessableError(
            "The file's name holds no letter or digit; rename the file.", kind="invalid"
        )
    target = destination.folder / safe
    if target.exists():
        raise _exists(target, destination)
    return target


def _exists(target: Path, destination: Destination) -> ConflictError:
    path = f"{target.parent.name}/{target.name}"
    return ConflictError(
        f"The data folder already has a file '{path}'; rename yours, or "
        f"{destination.instead.format(path=path)}.",
        kind=f"{destination.kind}-exists",
    )


async def _receive(request: Request, target: Path, destination: Destination) -> None:
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
            content = destination.content
            raise UnprocessableError(f"The file is empty; choose one with {content}.", kind="empty")
        if not await run_in_threadpool(_publish, temporary, target):
            raise _exists(target, destination)


def _publish(temporary: Path, target: Path) -> bool:
    """Give a file its name unless another file has it; returns whether it got it."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        temporary.rename(target)  # a file system without links
    return True
