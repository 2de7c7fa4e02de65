"""An SAE in a zip, such as a run's download: finds its folder in the archive and unpacks it.

Called by the backend before a path is read as an SAE. No torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zlib
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from sae_engine.errors import DiskFullError, UserError, cause_of
from sae_engine.files import published_folder
from sae_engine.interop.files import NAMES, PICKLES, is_module
from sae_engine.scratch import remove_abandoned

MAX_ENTRIES = 100_000
"""Most files and folders of an archive."""
MAX_BYTES = 32 * 2**30
"""Most bytes that are unpacked."""
_DAMAGE = (BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, ValueError, OSError)
"""What `zipfile` raises for a file that it cannot read."""
_MARKER = ".unpacked-from-zip"
"""File in a folder that was unpacked here, so that no other folder is taken for one."""


def is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def unpacked(
    archive: Path, parent: Path, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
) -> Path:
    """The folder of the SAE in `archive`, unpacked below `parent` unless it is there already.

    Only the files of that folder are unpacked. Raises `UserError` for an archive that is damaged or
    encrypted, has links or paths that leave it, exceeds the limits, or does not hold one SAE.
    """
    try:
        with ZipFile(archive) as file:
            entries = _checked(archive, file.infolist(), max_entries)
            inside = _sae_folder(archive, entries)
            target = parent / _identity(archive) / _name(archive, inside)
            if not target.is_dir():
                chosen = [entry for entry in entries if _belongs(entry, inside)]
                _require_room(archive, parent, sum(e.file_size for e in chosen), max_bytes)
                _unpack(file, chosen, inside, target)
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(
            f"'{archive}' cannot be unpacked ({cause_of(error)}); download or copy the zip again."
        ) from error
    return target


def unpacked_folder(path: Path, parent: Path) -> Path | None:
    """The folder below `parent` that holds `path` and was unpacked from a zip, if there is one."""
    path, parent = (Path(os.path.realpath(each)) for each in (path, parent))
    if path == parent or not path.is_relative_to(parent):
        return None
    folder = parent / path.relative_to(parent).parts[0]
    return folder if (folder / _MARKER).is_file() else None


def _checked(archive: Path, entries: Sequence[ZipInfo], max_entries: int) -> list[ZipInfo]:
    """The files among the entries."""
    if len(entries) > max_entries:
        raise _refusal(
            archive, f"has {len(entries):,} entries, and at most {max_entries:,} are read"
        )
    for entry in entries:
        shown = f"{entry.filename!r:.80}"
        if ".." in entry.filename.split("/") or entry.filename.startswith("/"):
            raise _refusal(archive, f"has the path {shown}, which leaves its folder")
        if "\\" in entry.filename:
            raise _refusal(archive, f"has the path {shown} with a backslash")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refusal(archive, f"has {shown}, which is a link or no ordinary file")
        if entry.flag_bits & 1:
            raise _refusal(archive, "is encrypted")
    return [entry for entry in entries if not entry.is_dir()]


def _refusal(archive: Path, what: str) -> UserError:
    return UserError(f"'{archive}' {what}; unpack it yourself and give the SAE's folder.")


def _sae_folder(archive: Path, files: Sequence[ZipInfo]) -> PurePosixPath:
    """The outermost folder with the tensors of an SAE."""
    paths = [PurePosixPath(file.filename) for file in files]
    folders = {path.parent for path in paths if _holds_tensors(path)}
    if not folders:
        raise UserError(
            f"'{archive}' holds no SAE: none of {', '.join(NAMES)}; of a run's downloads, take SAE."
        )
    depth = min(len(folder.parts) for folder in folders)
    outermost = sorted(str(folder) for folder in folders if len(folder.parts) == depth)
    if len(outermost) > 1:
        some = ", ".join(outermost[:6])
        raise _refusal(archive, f"holds several SAEs, in the folders {some}")
    return PurePosixPath(outermost[0])


def _holds_tensors(path: PurePosixPath) -> bool:
    is_of_macos = path.name.startswith("._")
    return not is_of_macos and (path.name in NAMES or path.suffix in PICKLES)


def _identity(archive: Path) -> str:
    """Distinguishes archives, and the states of one that is replaced."""
    found = archive.stat()
    described = f"{archive.resolve()} {found.st_size} {found.st_mtime_ns}"
    return hashlib.sha256(described.encode(errors="surrogateescape")).hexdigest()[:16]


def _name(archive: Path, inside: PurePosixPath) -> str:
    """The name of the SAE's folder: in the archive, or that of the archive."""
    return inside.name or archive.stem.strip(" .") or "sae"


def _belongs(file: ZipInfo, inside: PurePosixPath) -> bool:
    path = PurePosixPath(file.filename)
    return path.parent == inside or _is_above(path, inside)


def _is_above(path: PurePosixPath, inside: PurePosixPath) -> bool:
    """Whether this is the settings file of a sparsify run, above its SAE's folder."""
    return is_module(inside.name) and path == inside.parent / "config.json"


def _require_room(archive: Path, parent: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise _refusal(archive, f"unpacks to {size:,} bytes, and at most {max_bytes:,} are read")
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    free = shutil.disk_usage(parent).free
    if size > free:
        raise DiskFullError(
            f"'{archive}' unpacks to {size / 1e9:.1f} GB, but the disk of '{parent}' has "
            f"{free / 1e9:.1f} GB free; free some space and try again."
        )


def _unpack(file: ZipFile, entries: Sequence[ZipInfo], inside: PurePosixPath, target: Path) -> None:
    with published_folder(target.parent) as temporary:
        (temporary / target.name).mkdir()
        (temporary / _MARKER).touch()
        for entry in entries:
            path = PurePosixPath(entry.filename)
            folder = temporary / target.name if path.parent == inside else temporary
            # `zipfile` reads no more than the size that the entry states.
            with file.open(entry) as source, (folder / path.name).open("wb") as copy:
                shutil.copyfileobj(source, copy, 2**20)
