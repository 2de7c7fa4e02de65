"""How many features fire how often, counted on a logarithmic scale."""

from __future__ import annotations

import math

import numpy as np

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import DensityHistogram

BINS_PER_DECADE = 8


def density_histogram(index: FeatureIndex) -> DensityHistogram:
    """Densities of all features, counted from the least possible one (one position of the corpus)
    to 1.
    """
    least = math.floor(BINS_PER_DECADE * -math.log10(index.num_tokens))
    # Three digits: an edge is a number that people read, write and filter by.
    edges = [float(f"{10 ** (i / BINS_PER_DECADE):.3g}") for i in range(least, 1)]
    alive = index.fired[index.fired > 0]
    counts, _ = np.histogram(alive / index.num_tokens, [0.0, *edges[1:]])
    return DensityHistogram(
        snapshot=index.step,
        edges=edges,
        counts=counts.tolist(),
        num_dead=index.d_sae - len(alive),
    )
