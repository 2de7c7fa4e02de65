"""A map of decoder directions: UMAP (McInnes et al. 2018, arXiv 1802.03426) on their cosines.

Neighbors are exact and the beginning is the plane of the largest variance, so that with one seed
the map is the same every time.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.features.geometry.files import Layout, Report, not_reported
from sae_engine.features.geometry.rows import DecoderRows
from sae_engine.features.index.decoder_directions import nearest_rows
from sae_engine.features.index.format import load_array

NUM_NEIGHBOURS = 15
"""UMAP's own default; with fewer rows there is no neighborhood to speak of."""
ROWS_PER_READ = 4096
EXTENT = 10.0
"""Half the width of the beginning, as UMAP is tuned for."""


def lay_out(
    index_folder: Path, sae: Path, *, seed: int = 0, report: Report = not_reported
) -> Layout:
    """Place the latents of `sae` that fire in the feature index at `index_folder`.

    Raises `UserError` for a file that is no SAE.
    """
    latents = np.flatnonzero(np.diff(load_array(index_folder, "latent_starts")))
    alive = torch.from_numpy(latents)
    kept = [
        rows[alive[(alive >= first) & (alive < first + len(rows))] - first]
        for first, rows in DecoderRows(sae).chunks(ROWS_PER_READ)
    ]
    return Layout(latents.astype(np.uint32), map_of(torch.cat(kept), seed=seed, report=report))


@torch.no_grad()
def map_of(
    rows: Float[Tensor, "n d_in"], *, seed: int = 0, report: Report = not_reported
) -> NDArray[np.float32]:
    """[n, 2] places of unit rows; near each other where their cosine is high.

    With no more rows than a neighborhood has, it is their plane of the largest variance.
    """
    start = _plane(rows)
    if len(rows) <= NUM_NEIGHBOURS:
        return start
    indices, cosines = [], []
    done = 0
    for values, near in nearest_rows(rows, NUM_NEIGHBOURS - 1):
        indices.append(near)
        cosines.append(values)
        done += len(near)
        report("finding each row's neighbors", done / len(rows))
    report("laying the map out", None)
    own = torch.arange(len(rows))[:, None]  # UMAP counts a row as its own first neighbor
    near = torch.cat([own, torch.cat(indices)], dim=1)
    distances = (1 - torch.cat(cosines)).clamp_min(0)
    distances = torch.cat([torch.zeros(len(rows), 1), distances], dim=1)
    return _umap(rows.numpy(), near.numpy(), distances.numpy(), start, seed)


def _plane(rows: Float[Tensor, "n d_in"]) -> NDArray[np.float32]:
    """[n, 2] the rows' first two principal components, at most `EXTENT` from the middle.

    Signs are chosen so that each component's largest loading is positive.
    """
    centered = rows - rows.mean(dim=0)
    _, axes = torch.linalg.eigh((centered.T @ centered).double())
    axes = axes[:, -2:].flip(1)
    largest = axes.abs().argmax(dim=0)
    axes *= axes[largest, torch.arange(axes.shape[1])].sign()
    points = centered.double() @ axes
    if points.shape[1] < 2:
        points = torch.cat([points, torch.zeros_like(points)], dim=1)
    return (points * (EXTENT / points.abs().max().clamp_min(1e-12))).float().numpy()


def _umap(
    rows: NDArray[np.float32],
    near: NDArray[np.int64],
    distances: NDArray[np.float32],
    start: NDArray[np.float32],
    seed: int,
) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        # What is announced does not matter here: rows are never added to a finished map, and with
        # a seed one thread works.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP  # takes seconds
        except ImportError:
            raise UserError(
                "The map needs the package umap-learn: pip install 'sae-workbench[map]'."
            ) from None

        return UMAP(
            n_neighbors=NUM_NEIGHBOURS,
            metric="cosine",
            init=start,  # pyright: ignore[reportArgumentType]
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(near.astype(np.int32), distances),
            force_approximation_algorithm=True,  # else few rows have their neighbors sought again
        ).fit_transform(rows)
