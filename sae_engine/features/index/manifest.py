"""The manifest of a feature index, and how damage to its files is found.

`build` writes the manifest last. `format` and `reader` compare the files with it, so that every
error caused by a damaged file is an `IndexDamagedError` that names the file.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sae_engine.errors import UserError, cause_of

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
REMEDY = "the feature index is damaged: delete this snapshot's folder, or restore it from a copy."


class IndexDamagedError(UserError):
    """A file of a feature index is missing or differs from the manifest; the message names it."""


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class _Version(BaseModel):
    """What every version's manifest has."""

    format_version: int


class Manifest(BaseModel):
    """What an index covers, and the size and checksum of each of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    step: int
    tokens: int
    """Tokens trained on until that step."""
    num_tokens: int
    """Positions in the index corpus."""
    num_rows: int
    k: int
    d_sae: int
    vocab_size: int
    act_scale: float
    """What stored activations are multiplied by; a power of two."""
    largest_norm: float | None = None
    """Tokens whose activation has a larger norm are outliers, and left out; none if null."""
    final: bool
    created_at: datetime
    files: dict[str, FileEntry]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of an index; raises `IndexDamagedError`."""
        path = folder / MANIFEST
        try:
            text = path.read_bytes()
            version = _Version.model_validate_json(text).format_version
            if version == FORMAT_VERSION:
                return cls.model_validate_json(text)
        except (OSError, ValidationError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise IndexDamagedError(f"{path} {reason}; {REMEDY}") from error
        raise IndexDamagedError(
            f"{path} has format version {version}, but this program reads version "
            f"{FORMAT_VERSION}; open it with the version of SAE Workbench that made it."
        )

    def check_sizes(self, folder: Path) -> None:
        """Compare the size of every file, which takes microseconds; raises `IndexDamagedError`.

        Reading past the end of a file that was truncated after it was mapped would kill the
        process.
        """
        for name, entry in self.files.items():
            path = folder / name
            try:
                size = path.stat().st_size
            except OSError:
                raise IndexDamagedError(f"{path} is missing; {REMEDY}") from None
            if size != entry.bytes:
                raise IndexDamagedError(
                    f"{path} has {size} bytes instead of {entry.bytes}; {REMEDY}"
                )

    def verify(self, folder: Path, *names: str) -> None:
        """Compare the checksums of some files, or of all; raises `IndexDamagedError`."""
        for name in names or self.files:
            path = folder / name
            try:
                checksum = _sha256(path)
            except OSError as error:
                raise IndexDamagedError(
                    f"{path} cannot be read ({cause_of(error)}); {REMEDY}"
                ) from error
            if checksum != self.files[name].sha256:
                raise IndexDamagedError(f"{path} does not match its checksum; {REMEDY}")


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and checksum of every file in a folder."""
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        checksums = pool.map(_sha256, paths)
        return {
            path.name: FileEntry(bytes=path.stat().st_size, sha256=checksum)
            for path, checksum in zip(paths, checksums, strict=True)
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Verifiable(Protocol):
    def verify(self) -> None: ...


_Index = TypeVar("_Index", bound=_Verifiable)
_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")
_Function = Callable[Concatenate[_Index, _Params], _Result]


@contextmanager
def damage_check(index: _Verifiable) -> Generator[None]:
    """On an unexpected error, verify the index, which raises `IndexDamagedError` if a file is the
    cause. Checksums are compared only then, because that reads the whole index.
    """
    try:
        yield
    except UserError:
        raise
    except Exception:
        index.verify()
        raise


def damage_checked(
    function: _Function[_Index, _Params, _Result],
) -> _Function[_Index, _Params, _Result]:
    """Run a function whose first argument is an index inside `damage_check`."""

    @functools.wraps(function)
    def checked(index: _Index, *args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        with damage_check(index):
            return function(index, *args, **kwargs)

    return checked
