"""Analyses of all features at once, without torch: density histogram, map, comparison of two SAEs.

Map and comparison need results of `geometry`, which are computed in another process.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.cluster_names import cluster_names
from sae_engine.features.geometry.files import Layout, Matches
from sae_engine.features.index.details import Labels, Stars
from sae_engine.features.index.listing import cursor_at, offset_of
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import (
    MATCH_THRESHOLD,
    DensityHistogram,
    FeatureComparison,
    FeatureMap,
    MapRegion,
    MatchedFeatures,
    MatchSection,
)
from sae_engine.schema.features import SortOrder

BINS_PER_DECADE = 8
NUM_MAP_TOKENS = 3
NUM_COSINE_BINS = 50


def density_histogram(index: FeatureIndex) -> DensityHistogram:
    """Histogram of feature densities with logarithmic bins, from one position to 1."""
    least = math.floor(BINS_PER_DECADE * -math.log10(index.num_tokens))
    # Three digits, because people read, type and filter by the edges.
    edges = [float(f"{10 ** (i / BINS_PER_DECADE):.3g}") for i in range(least, 1)]
    alive = index.fired[index.fired > 0]
    counts, _ = np.histogram(alive / index.num_tokens, [0.0, *edges[1:]])
    return DensityHistogram(
        snapshot=index.step,
        edges=edges,
        counts=counts.tolist(),
        num_dead=index.d_sae - len(alive),
    )


def feature_map(
    index: FeatureIndex, layout: Layout, labels: Labels, stars: Stars = ()
) -> FeatureMap:
    """The features that fire in an index, at their positions in `layout`."""
    latents = layout.latents.astype(np.int64)
    top_tokens = index.top_tokens(latents, NUM_MAP_TOKENS)
    x, y = layout.points.astype(np.float64).round(3).T
    return FeatureMap(
        snapshot=index.step,
        index=latents.tolist(),
        x=x.tolist(),
        y=y.tolist(),
        density=(index.fired[latents] / index.num_tokens).tolist(),
        top_tokens=top_tokens,
        regions=_regions(layout, top_tokens),
        labels={i: text for i, text in labels.items() if text},
        starred=sorted(stars),
        num_dead=int((index.fired == 0).sum()),
    )


def _regions(layout: Layout, top_tokens: list[list[str]]) -> list[MapRegion]:
    names = cluster_names(layout.clusters.tolist(), top_tokens)
    regions: list[MapRegion] = []
    for region, tokens in enumerate(names):
        members = layout.points[layout.clusters == region].astype(np.float64)
        x, y = members.mean(axis=0).round(3).tolist()
        regions.append(MapRegion(x=x, y=y, num_features=len(members), tokens=tokens))
    return regions


def compare_features(
    a: FeatureIndex,
    b: FeatureIndex,
    matches: Matches,
    *,
    section: MatchSection = "mutual",
    threshold: float = MATCH_THRESHOLD,
    order: SortOrder | None = None,
    labels_a: Labels,
    labels_b: Labels,
    stars_a: Stars = (),
    stars_b: Stars = (),
    limit: int = 50,
    cursor: str | None = None,
) -> FeatureComparison:
    """How the features of two SAEs match, and a page of one `section`.

    Sorted by cosine; by default descending in `mutual` and ascending in the other sections. Raises
    `UserError` for an invalid cursor.
    """
    offset = offset_of(cursor) if cursor else 0
    fires_a, fires_b = a.fired > 0, b.fired > 0
    near_b, near_a = matches.best_in_b.astype(np.int64), matches.best_in_a.astype(np.int64)
    is_mutual = near_a[near_b] == np.arange(len(near_b))
    close = matches.cosines_in_b >= threshold
    pairs = np.flatnonzero(is_mutual & close & fires_a & fires_b[near_b])
    only_a = np.flatnonzero(fires_a & ~close)
    only_b = np.flatnonzero(fires_b & (matches.cosines_in_a < threshold))
    chosen, cosines = {
        "mutual": (pairs, matches.cosines_in_b),
        "only_a": (only_a, matches.cosines_in_b),
        "only_b": (only_b, matches.cosines_in_a),
    }[section]
    key = cosines[chosen]
    descending = (order or ("desc" if section == "mutual" else "asc")) == "desc"
    chosen = chosen[np.argsort(-key if descending else key, kind="stable")]
    page = chosen[offset : offset + limit]
    end = offset + len(page)
    items = [
        MatchedFeatures(
            a=a.row(i, labels_a, stars_a),
            b=b.row(j, labels_b, stars_b),
            cosine=cosine,
            mutual=bool(near_b[i] == j and near_a[j] == i),
        )
        for i, j, cosine in zip(
            (near_a[page] if section == "only_b" else page).tolist(),
            (page if section == "only_b" else near_b[page]).tolist(),
            cosines[page].tolist(),
            strict=True,
        )
    ]
    edges = np.linspace(0, 1, NUM_COSINE_BINS + 1).round(3)
    return FeatureComparison(
        snapshots=[a.step, b.step],
        num_features=[int(fires_a.sum()), int(fires_b.sum())],
        cosine_edges=edges.tolist(),
        counts_a=_counts(matches.cosines_in_b[fires_a], edges),
        counts_b=_counts(matches.cosines_in_a[fires_b], edges),
        threshold=threshold,
        num_mutual=len(pairs),
        num_only_a=len(only_a),
        num_only_b=len(only_b),
        items=items,
        total=len(chosen),
        next_cursor=cursor_at(end) if len(page) and end < len(chosen) else None,
    )


def _counts(cosines: NDArray[np.float32], edges: NDArray[np.float64]) -> list[int]:
    """Histogram in which negative cosines count as 0, and rounding errors above 1 as 1."""
    return np.histogram(cosines.clip(0, 1), edges)[0].tolist()
