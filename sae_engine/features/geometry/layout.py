"""A map of decoder directions: UMAP (McInnes et al. 2018, arXiv 1802.03426) on their cosines.

Neighbors are exact and the initial positions are the plane of the largest variance, so the map is
deterministic for a seed.
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
from sae_engine.features.geometry.files import Layout, Report, no_report
from sae_engine.features.geometry.rows import DecoderRows
from sae_engine.features.index.decoder_directions import nearest_rows
from sae_engine.features.index.format import firing

NUM_NEIGHBOURS = 15
"""UMAP's default."""
FEATURES_PER_REGION = 8
"""The number of regions is the root of the number of features over this."""
MOST_REGIONS = 24
"""As many names as a map can show side by side."""
ROWS_PER_READ = 4096
LAYING_OUT = "laying out the map"
EXTENT = 10.0
"""Half the width of the initial positions, as UMAP expects."""


def lay_out(index_folder: Path, sae: Path, *, seed: int = 0, report: Report = no_report) -> Layout:
    """Lay out the latents of `sae` that fire in the feature index at `index_folder`.

    Raises `IndexDamagedError`.
    """
    latents = np.flatnonzero(firing(index_folder))
    alive = torch.from_numpy(latents)
    kept = [
        rows[alive[(alive >= first) & (alive < first + len(rows))] - first]
        for first, rows in DecoderRows(sae).chunks(ROWS_PER_READ)
    ]
    points = map_of(torch.cat(kept), seed=seed, report=report)
    report("dividing the map into regions", None)
    return Layout(latents.astype(np.uint32), points, regions_of(points, seed=seed))


def regions_of(points: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.int32]:
    """[n] the k-means cluster of each point; -1 for points too few for UMAP."""
    if len(points) <= NUM_NEIGHBOURS:
        return np.full(len(points), -1, np.int32)
    from sklearn.cluster import KMeans  # comes with UMAP; takes a second

    num_regions = min(max(round((len(points) / FEATURES_PER_REGION) ** 0.5), 2), MOST_REGIONS)
    means = KMeans(num_regions, random_state=seed, n_init=4)  # pyright: ignore[reportArgumentType]
    return means.fit_predict(points).astype(np.int32)


@torch.no_grad()
def map_of(
    rows: Float[Tensor, "n d_in"], *, seed: int = 0, report: Report = no_report
) -> NDArray[np.float32]:
    """[n, 2] positions of unit rows; rows with a high cosine are near each other.

    With at most `NUM_NEIGHBOURS` rows, it is their plane of the largest variance.
    """
    if not len(rows):
        return np.zeros((0, 2), np.float32)
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
    report(LAYING_OUT, None)
    own = torch.arange(len(rows))[:, None]  # UMAP counts a row as its own first neighbor
    near = torch.cat([own, torch.cat(indices)], dim=1)
    distances = (1 - torch.cat(cosines)).clamp_min(0)
    distances = torch.cat([torch.zeros(len(rows), 1), distances], dim=1)
    return _umap(rows.numpy(), near.numpy(), distances.numpy(), start, seed, report)


def _plane(rows: Float[Tensor, "n d_in"]) -> NDArray[np.float32]:
    """[n, 2] the rows' first two principal components; the largest coordinate is `EXTENT`.

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


class _EpochReport:
    """The file that UMAP's progress bar is written to, as `\\r3/200`."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def write(self, text: str) -> None:
        done, _, total = text.strip().partition("/")
        if total:
            self._report(LAYING_OUT, int(done) / int(total))

    def flush(self) -> None: ...


def _umap(
    rows: NDArray[np.float32],
    near: NDArray[np.int64],
    distances: NDArray[np.float32],
    start: NDArray[np.float32],
    seed: int,
    report: Report,
) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        # UMAP warns that a precomputed graph cannot transform new rows, and that a seed means one
        # thread; neither matters here.
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
            force_approximation_algorithm=True,  # else it recomputes neighbors for few rows
            tqdm_kwds={
                "disable": False,
                "bar_format": "{n_fmt}/{total_fmt}",
                "file": _EpochReport(report),
            },
        ).fit_transform(rows)
