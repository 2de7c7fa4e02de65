"""The codes of an index corpus, written while its activations are read.

`training` passes activations as the language model computes them; `build` sorts the codes.
Activations themselves are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.features.index.format import ArrayWriter, array_file

ENCODE_CHUNK_TOKENS = 4096
MIN_ACT = 2.0**-24
"""Smallest positive float16."""
TOP_EXPONENT = 15
"""Stored activations are at most 2^15, so that half of them use the finest digits of float16 and
none overflows when it is rounded.
"""

LEAST_EXPONENT = -140
"""Of a scale that float32 can still represent; also that of chunks before the first active one."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


class ActivationRangeError(UserError):
    """A latent's activation is not finite."""


class Codes(NamedTuple):
    """Codes [N, width] in the files `indices` and `acts` of a folder."""

    folder: Path
    num_tokens: int
    width: int
    fired: NDArray[np.int64]
    """[d_sae] number of positions on which each latent is active."""
    act_scale: float
    """What stored activations are to be multiplied by."""


class CorpusEncoder:
    """Context manager that encodes a corpus and writes its codes to `folder`.

    Activations are encoded in chunks of `ENCODE_CHUNK_TOKENS`, whatever the pieces that they are
    added in, so that codes do not depend on how they were read.
    """

    def __init__(
        self, folder: Path, encode: Encode, *, d_sae: int, k: int | None, device: torch.device
    ) -> None:
        """`encode` maps [n, d_in] float32 on `device` to (acts [n, k], indices [n, k]). If `k` is
        None, the width of codes may vary between calls.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._d_sae = folder, d_sae
        self._encode, self._device = encode, device
        self._codes = _UnpaddedCodes(folder) if k is None else CodeWriter(folder, d_sae, k)
        self._waiting: Tensor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Encode activations [n, d_in] that follow those before; the last ones may wait for more.

        Raises `ActivationRangeError` for activations of latents that are not finite.
        """
        if self._waiting is not None:
            x = torch.cat([self._waiting, x])
        whole = len(x) - len(x) % ENCODE_CHUNK_TOKENS
        for first in range(0, whole, ENCODE_CHUNK_TOKENS):
            self._write(x[first : first + ENCODE_CHUNK_TOKENS])
        self._waiting = x[whole:] if whole < len(x) else None

    @torch.no_grad()
    def finish(self) -> Codes:
        """Encode what waits; raises `UserError` if the corpus has no tokens."""
        if self._waiting is not None:
            self._write(self._waiting)
            self._waiting = None
        if isinstance(self._codes, CodeWriter):
            return self._codes.finish()
        with closing(CodeWriter(self._folder, self._d_sae, self._codes.width)) as writer:
            for acts, indices in self._codes.read():
                writer.append(acts, indices)
            return writer.finish()

    def close(self) -> None:
        """Close the files, which are not complete before `finish`."""
        self._codes.close()

    def _write(self, x: Tensor) -> None:
        acts, indices = self._encode(x.to(self._device, torch.float32))
        assert acts.shape == indices.shape
        assert len(acts) == len(x)
        code = acts.float().cpu().numpy(), indices.cpu().numpy()
        _require_finite(*code)
        self._codes.append(*code)


class _UnpaddedCodes:
    """Codes that wait in a file until it is known which are the widest."""

    def __init__(self, folder: Path) -> None:
        self.width = 0
        self._num_chunks = 0
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - `close` closes it

    def append(self, acts: NDArray[np.float32], indices: NDArray[Any]) -> None:
        self.width = max(self.width, acts.shape[1])
        self._num_chunks += 1
        for array in (acts, indices):
            np.save(self._file, array, allow_pickle=False)

    def read(self) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """Acts and indices, in chunks."""
        self._file.seek(0)
        for _ in range(self._num_chunks):
            yield np.load(self._file), np.load(self._file)

    def close(self) -> None:
        self._file.close()


class CodeWriter:
    """Writes `indices` and `acts`, zero-padded to `width`.

    The largest activation is known only at the end. Until then each chunk is scaled by the largest
    so far; at the end, the chunks that came before it are scaled again.
    """

    def __init__(self, folder: Path, d_sae: int, width: int) -> None:
        self._folder, self._width = folder, width
        self._fired = np.zeros(d_sae, np.int64)
        self._exponents: list[int] = []
        self._lengths: list[int] = []
        self._files = ExitStack()
        index_type = np.uint16 if d_sae <= 2**16 else np.uint32
        self._indices, self._acts = (
            self._files.enter_context(ArrayWriter(folder, name, dtype, width))
            for name, dtype in (("indices", index_type), ("acts", np.float16))
        )

    def append(self, acts: NDArray[np.float32], indices: NDArray[Any]) -> None:
        """Write the codes [n, at most width] of the next positions."""
        largest = acts.max(initial=0.0)
        needed = int(np.frexp(largest)[1]) - TOP_EXPONENT if largest > 0 else LEAST_EXPONENT
        self._exponents.append(max(LEAST_EXPONENT, needed, *self._exponents[-1:]))
        self._lengths.append(len(acts))
        self._fired += np.bincount(indices[acts > 0], minlength=len(self._fired))
        missing = ((0, 0), (0, self._width - acts.shape[1]))
        self._indices.append(np.pad(indices, missing))
        self._acts.append(np.pad(_scaled(acts, -self._exponents[-1]), missing))

    def finish(self) -> Codes:
        """Complete the files; raises `UserError` if no position was written."""
        self.close()
        if not self._lengths:
            raise UserError(
                "The index corpus has no tokens; use a dataset with more held-out text."
            )
        act_scale = _rescale(self._folder, self._exponents, self._lengths)
        return Codes(self._folder, sum(self._lengths), self._width, self._fired, act_scale)

    def close(self) -> None:
        self._files.close()


def _rescale(folder: Path, exponents: Sequence[int], lengths: Sequence[int]) -> float:
    """Scale all chunks of `acts` by the last chunk's exponent; return 2 to its power."""
    acts, first = np.load(folder / array_file("acts"), mmap_mode="r+"), 0
    for exponent, length in zip(exponents, lengths, strict=True):
        if exponent < exponents[-1]:
            chunk = acts[first : first + length]
            chunk[:] = _scaled(chunk.astype(np.float32), exponent - exponents[-1])
        first += length
    acts.flush()
    return 2.0 ** exponents[-1]


def _scaled(acts: NDArray[np.float32], exponent: int) -> NDArray[np.float16]:
    """Multiply by a power of two and round to float16, keeping active latents active."""
    scaled = np.ldexp(acts, exponent)
    return np.where(acts > 0, np.maximum(scaled, MIN_ACT), 0).astype(np.float16)


def _require_finite(acts: NDArray[np.float32], indices: NDArray[Any]) -> None:
    bad = np.argwhere(~np.isfinite(acts))
    if len(bad):
        where = tuple(bad[0])
        raise ActivationRangeError(
            f"Latent {indices[where]} has activation {acts[where]:g} on the index corpus; check "
            "for a diverging loss, or for a model.dtype that the language model overflows."
        )
    assert (acts >= 0).all()
