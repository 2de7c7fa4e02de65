"""The files of one feature index folder, spelled once: their names, types and manifest.

`build` writes them, `reader` opens them. `N` is the number of positions (excluded ones never
enter), `V` the vocabulary's size, `P` the number of (token, latent) pairs that occur together at
least once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from sae_engine.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SAE = "sae.safetensors"


class IndexDamagedError(UserError):
    """A file of a feature index is missing or is not what the manifest says it is."""


@dataclass(frozen=True)
class IndexArrays:
    """All arrays of an index, memory-mapped; each lives in `<field>.npy`.

    Activations are float16. An entry of `acts` that is 0 is not active and appears nowhere else.
    """

    # The code of every position, in corpus order.
    token_ids: NDArray[np.uint32]
    """[N]"""
    row_starts: NDArray[np.int64]
    """[R + 1]: where rows begin, and N."""
    indices: NDArray[Any]
    """[N, k] latents; uint16 if they fit, else uint32. k is the width of the widest code."""
    acts: NDArray[np.float16]
    """[N, k]"""

    # By latent: where it is active, strongest first, ties by position.
    latent_starts: NDArray[np.int64]
    """[d_sae + 1] bounds of each latent in the next two."""
    latent_positions: NDArray[np.uint32]
    latent_acts: NDArray[np.float16]
    latent_token_starts: NDArray[np.int64]
    """[d_sae + 1] bounds of each latent in the next one."""
    latent_tokens: NDArray[np.uint32]
    """[P] tokens on which a latent is active, best F1 first, ties by id."""

    # By token: where it stands, and the exact table of latents active on it.
    token_starts: NDArray[np.int64]
    """[V + 1] bounds of each token in the next one."""
    token_positions: NDArray[np.uint32]
    """[N]"""
    pair_starts: NDArray[np.int64]
    """[V + 1] bounds of each token in the next four, which are sorted by latent within a token."""
    pair_latents: NDArray[np.uint32]
    pair_counts: NDArray[np.uint32]
    pair_sums: NDArray[np.float32]
    pair_maxes: NDArray[np.float16]

    # The vocabulary: the bytes of token i are `vocabulary_bytes[offsets[i]:offsets[i + 1]]`.
    vocabulary_offsets: NDArray[np.int64]
    vocabulary_bytes: NDArray[np.uint8]

    # Only in a final index; rows best first.
    positive_logit_ids: NDArray[np.uint32] | None = None
    positive_logits: NDArray[np.float32] | None = None
    negative_logit_ids: NDArray[np.uint32] | None = None
    negative_logits: NDArray[np.float32] | None = None
    neighbour_indices: NDArray[np.uint32] | None = None
    neighbour_cosines: NDArray[np.float32] | None = None


def array_file(name: str) -> str:
    """File name of an array of `IndexArrays`."""
    assert name in IndexArrays.__dataclass_fields__, name
    return f"{name}.npy"


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an index covers, and the size and checksum of each of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    step: int
    tokens: int
    """Training tokens seen at that step."""
    num_tokens: int
    num_rows: int
    k: int
    d_sae: int
    vocab_size: int
    final: bool
    created_at: datetime
    files: dict[str, FileEntry]


class ArrayWriter:
    """Writes one array of an index in pieces along its first axis; a context manager."""

    def __init__(self, folder: Path, name: str, dtype: type[np.generic], *row_shape: int) -> None:
        self._path = folder / array_file(name)
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._rows = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def append(self, values: NDArray[Any]) -> None:
        """Append values [n, *row_shape], converted to the array's type."""
        values = np.ascontiguousarray(values, dtype=self._dtype)
        assert values.shape[1:] == self._row_shape
        values.tofile(self._file)
        self._rows += len(values)

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis can grow in place.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def save_array(folder: Path, name: str, values: NDArray[Any]) -> None:
    np.save(folder / array_file(name), values, allow_pickle=False)


def load_array(folder: Path, name: str) -> NDArray[Any]:
    """Memory-map one array; raises `IndexDamagedError` when it is no array."""
    path = folder / array_file(name)
    try:
        # A plain view: slicing np.memmap objects costs microseconds more.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # numpy reads the header as a piece of Python
        raise IndexDamagedError(
            f"{path} cannot be read as an array ({error}); {_REMEDY}"
        ) from error


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and checksum of every file in a folder."""
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing leaves the interpreter free
        checksums = pool.map(_sha256, paths)
        return {
            path.name: FileEntry(bytes=path.stat().st_size, sha256=checksum)
            for path, checksum in zip(paths, checksums, strict=True)
        }


def open_index(folder: Path) -> tuple[Manifest, IndexArrays]:
    """Memory-map an index after comparing every file's size with the manifest.

    Raises `IndexDamagedError` naming the file that is missing, truncated or unreadable.
    """
    manifest = _read_manifest(folder)
    check_sizes(folder, manifest)
    names = [f.name for f in dataclasses.fields(IndexArrays) if f"{f.name}.npy" in manifest.files]
    try:
        return manifest, IndexArrays(**{name: load_array(folder, name) for name in names})
    except TypeError as error:
        raise IndexDamagedError(
            f"{folder / MANIFEST} does not list every array; {_REMEDY}"
        ) from error


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compare every file's size with the manifest, which costs microseconds.

    Raises `IndexDamagedError` naming the file that is missing or truncated. Reading beyond the end
    of a file that was truncated after it was mapped would end the process.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError:
            raise IndexDamagedError(f"{path} is missing; {_REMEDY}") from None
        if size != entry.bytes:
            raise IndexDamagedError(f"{path} has {size} bytes instead of {entry.bytes}; {_REMEDY}")


def verify_files(folder: Path) -> None:
    """Compare the content of every file with its checksum; reads the whole index.

    Raises `IndexDamagedError` naming the first file that differs.
    """
    manifest = _read_manifest(folder)
    for name in manifest.files:
        verify_file(folder, manifest, name)


def verify_file(folder: Path, manifest: Manifest, name: str) -> None:
    """Compare the content of one file with its checksum; raises `IndexDamagedError`."""
    path = folder / name
    if not path.is_file() or _sha256(path) != manifest.files[name].sha256:
        raise IndexDamagedError(f"{path} does not match its checksum; {_REMEDY}")


_REMEDY = "the feature index is damaged: delete this snapshot's folder, or restore it from a copy."


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise IndexDamagedError(f"{path} {reason}; {_REMEDY}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise IndexDamagedError(
            f"{path} has format version {manifest.format_version}, but this program reads version "
            f"{FORMAT_VERSION}; open it with the version of SAE Workbench that made it."
        )
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
