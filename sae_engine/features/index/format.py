"""The files of a feature index folder: names, types, and how to read and write them.

`build` writes them, `reader` opens them. `N` is the number of positions in the corpus (excluded
positions such as BOS are not among them), `V` the vocabulary size, and `P` the number of
(token, latent) pairs that occur together at least once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sae_engine.errors import cause_of
from sae_engine.features.index.manifest import MANIFEST, REMEDY, IndexDamagedError, Manifest

TOKENIZER = "tokenizer.json"
SAE = "sae.safetensors"


@dataclass(frozen=True)
class IndexArrays:
    """All arrays of an index, memory-mapped; each is stored in `<field>.npy`.

    Activations and their sums are stored divided by `act_scale`, activations in float16. An entry
    of `acts` that is 0 is inactive and is in no other array.
    """

    act_scale: float
    """From the manifest; a power of two, so that scaling is exact."""

    # The code of every position, in corpus order.
    token_ids: NDArray[np.uint32]
    """[N]"""
    row_starts: NDArray[np.int64]
    """[R + 1] first position of each row, and N."""
    indices: NDArray[Any]
    """[N, k] latents; uint16 if they fit, else uint32. k is the width of the widest code."""
    acts: NDArray[np.float16]
    """[N, k]"""

    # By latent: positions on which it is active, strongest first, ties by position.
    latent_starts: NDArray[np.int64]
    """[d_sae + 1] bounds of each latent in the next two arrays."""
    latent_positions: NDArray[np.uint32]
    latent_acts: NDArray[np.float16]
    latent_token_starts: NDArray[np.int64]
    """[d_sae + 1] bounds of each latent in the next array."""
    latent_tokens: NDArray[np.uint32]
    """[P] tokens on which a latent is active, highest F1 first, ties by id."""

    # By token: its positions, and exact statistics of the latents active on it.
    token_starts: NDArray[np.int64]
    """[V + 1] bounds of each token in the next array."""
    token_positions: NDArray[np.uint32]
    """[N]"""
    pair_starts: NDArray[np.int64]
    """[V + 1] bounds of each token in the next four arrays, sorted by latent within a token."""
    pair_latents: NDArray[np.uint32]
    pair_counts: NDArray[np.uint32]
    pair_sums: NDArray[np.float32]
    pair_maxes: NDArray[np.float16]

    # The vocabulary: the bytes of token i are `vocabulary_bytes[offsets[i]:offsets[i + 1]]`.
    vocabulary_offsets: NDArray[np.int64]
    vocabulary_bytes: NDArray[np.uint8]

    text_breaks: NDArray[np.int64] | None = None
    """Positions whose text does not continue that of the position before them, because tokens
    between them were left out, such as the separator of two documents. Starts of rows may be among
    them. None in an index that does not know them.
    """

    # Only in a final index; each row is sorted, best first.
    positive_logit_ids: NDArray[np.uint32] | None = None
    positive_logits: NDArray[np.float32] | None = None
    negative_logit_ids: NDArray[np.uint32] | None = None
    negative_logits: NDArray[np.float32] | None = None
    neighbour_indices: NDArray[np.uint32] | None = None
    neighbour_cosines: NDArray[np.float32] | None = None

    @property
    def num_tokens(self) -> int:
        """N"""
        return len(self.token_ids)

    @property
    def d_sae(self) -> int:
        return len(self.latent_starts) - 1

    @cached_property
    def fired(self) -> NDArray[np.int64]:
        """[d_sae] number of positions on which each latent is active."""
        return np.diff(self.latent_starts)

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        """[V] number of positions that hold each token."""
        return np.diff(self.token_starts)

    def max_activations(self, latents: NDArray[Any] | Sequence[int]) -> NDArray[np.float32]:
        """Largest activation of each latent on the corpus; 0 for dead latents.

        Reads one value per latent, each from another place of the file.
        """
        latents = np.asarray(latents, np.int64)
        alive = self.fired[latents] > 0
        largest = np.zeros(len(latents), np.float32)
        largest[alive] = self.latent_acts[self.latent_starts[latents[alive]]]
        return largest * np.float32(self.act_scale)


def array_file(name: str) -> str:
    """File name of an array of `IndexArrays`."""
    assert name in IndexArrays.__dataclass_fields__, name
    return f"{name}.npy"


class ArrayWriter:
    """Context manager that writes one array of an index in pieces along its first axis."""

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
        """Append values [n, *row_shape], converted to the array's dtype."""
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
    """Memory-map one array; raises `IndexDamagedError` if the file is not an array."""
    path = folder / array_file(name)
    try:
        # A plain array, because slicing an np.memmap takes microseconds longer.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # numpy evaluates the header as Python
        raise IndexDamagedError(
            f"{path} cannot be read as an array ({cause_of(error)}); {REMEDY}"
        ) from error


def firing(folder: Path) -> NDArray[np.bool_]:
    """[d_sae] whether each latent fires in the index at `folder`; raises `IndexDamagedError`."""
    return np.diff(load_array(folder, "latent_starts")) > 0


def open_index(folder: Path) -> tuple[Manifest, IndexArrays]:
    """Memory-map an index after comparing the size of every file with the manifest.

    Raises `IndexDamagedError` naming the file that is missing, truncated or unreadable.
    """
    manifest = Manifest.read(folder)
    manifest.check_sizes(folder)
    arrays = [f.name for f in dataclasses.fields(IndexArrays) if f"{f.name}.npy" in manifest.files]
    try:
        return manifest, IndexArrays(
            act_scale=manifest.act_scale, **{name: load_array(folder, name) for name in arrays}
        )
    except TypeError as error:
        raise IndexDamagedError(
            f"{folder / MANIFEST} does not list every array; {REMEDY}"
        ) from error


def open_decoder(sae: Path, *, framework: Literal["np", "pt"] = "np") -> Any:
    """`W_dec` [d_sae, d_in] of an index's `sae.safetensors`, which reads only indexed rows.

    Raises `IndexDamagedError` if the file is not an SAE.
    """
    try:
        return safe_open(sae, framework=framework).get_slice("W_dec")
    except (OSError, SafetensorError) as error:
        raise IndexDamagedError(f"'{sae}' is not an SAE ({cause_of(error)}); {REMEDY}") from error
