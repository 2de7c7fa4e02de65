"""Results of `geometry` as arrays in a folder. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.format import open_decoder

Report = Callable[[str, float | None], None]
"""Called with the current phase, in words, and the share of it that is done, if known."""


def no_report(_phase: str, _share: float | None) -> None:
    """The default `Report`, which does nothing."""


class Matches(NamedTuple):
    """For each decoder row of SAE A, the row of B with the highest cosine, and the reverse."""

    best_in_b: NDArray[np.uint32]
    """[d_sae of A]"""
    cosines_in_b: NDArray[np.float32]
    best_in_a: NDArray[np.uint32]
    """[d_sae of B]"""
    cosines_in_a: NDArray[np.float32]

    def save(self, folder: Path) -> None:
        """Write the arrays into an existing folder."""
        _save(folder, self)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the arrays; raises `OSError` or `ValueError` for missing or damaged files."""
        return cls(*_load(folder, cls._fields))

    def turned(self) -> Matches:
        """The same with A and B swapped."""
        return Matches(self.best_in_a, self.cosines_in_a, self.best_in_b, self.cosines_in_b)


class Layout(NamedTuple):
    """Positions of latents on a map."""

    latents: NDArray[np.uint32]
    """[n] latents on the map, ascending, without dead ones"""
    points: NDArray[np.float32]
    """[n, 2]"""
    clusters: NDArray[np.int32]
    """[n] the region of the map that each latent lies in, from 0; -1 on a map without regions"""

    def save(self, folder: Path) -> None:
        """Write the arrays into an existing folder."""
        _save(folder, self)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the arrays; raises `OSError` or `ValueError` for missing or damaged files."""
        return cls(*_load(folder, cls._fields))


def width_of(sae: Path) -> int:
    """d_in of an index's `sae.safetensors`; raises `IndexDamagedError`."""
    return open_decoder(sae).get_shape()[1]


def _save(folder: Path, arrays: Matches | Layout) -> None:
    for name, array in zip(arrays._fields, arrays, strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _load(folder: Path, names: tuple[str, ...]) -> list[NDArray[Any]]:
    return [np.load(folder / f"{name}.npy", allow_pickle=False) for name in names]
