"""Analyses of many features over REST: density histogram, feature map, comparison of runs."""

from __future__ import annotations

from typing import Any, Literal

from sae_engine.schema.features import FeatureRow
from sae_engine.schema.runs import MetricsSeries, Run
from sae_engine.schema.shape import Shape

MatchSection = Literal["mutual", "only_a", "only_b"]

MAX_COMPARED_RUNS = 8

MATCH_THRESHOLD = 0.7
"""Cosine from which two decoder rows count as the same feature, as in Paulo & Belrose 2025 (arXiv
2501.16615).
"""


class DensityHistogram(Shape):
    """How many features fire how often."""

    snapshot: int
    edges: list[float]
    """Density bin edges, eight per factor of ten; the last one is 1."""
    counts: list[int]
    """Features per bin; a bin includes its lower edge."""
    num_dead: int
    """Features that never fired; not in `counts`."""


class AnalysisProgress(Shape):
    """Progress of an analysis that is still running; ask again in a second."""

    phase: str
    """Current phase, in words."""
    fraction: float | None
    """Share of the phase that is done; null if unknown."""


class MapRegion(Shape):
    """A part of a map, named by the top tokens that its features share."""

    x: float
    """Of its middle."""
    y: float
    num_features: int
    tokens: list[str]
    """In lower case, without outer spaces, best first; empty if its features share none."""


class FeatureMap(Shape):
    """A 2-D map on which features with similar decoder rows are near each other."""

    snapshot: int
    index: list[int]
    """Features on the map; `x`, `y`, `density` and `top_tokens` are parallel to this list."""
    x: list[float]
    y: list[float]
    density: list[float]
    top_tokens: list[list[str]]
    regions: list[MapRegion]
    """Empty on a map of few features."""
    labels: dict[int, str]
    """Labels by feature; features without one are absent."""
    starred: list[int]
    num_dead: int
    """Features that never fired; they are not on the map."""


class ConfigDifference(Shape):
    """A configuration field in which the runs differ."""

    field: str
    """Dotted name, such as `sae.k`."""
    values: list[Any]
    """One per run."""


class BestValue(Shape):
    """The best value of a metric, and the first step that reached it."""

    value: float
    step: int


class Comparison(Shape):
    """Runs side by side."""

    runs: list[Run]
    differences: list[ConfigDifference]
    curves: list[MetricsSeries]
    """One per run."""
    best: list[dict[str, BestValue]]
    """One per run: best values by metric, for metrics with a better direction."""
    obstacle: str | None
    """Why the features of the first two runs cannot be matched; null if they can."""


class MatchedFeatures(Shape):
    """A feature of SAE A and a feature of SAE B."""

    a: FeatureRow
    b: FeatureRow
    cosine: float
    """Cosine between their decoder rows."""
    mutual: bool
    """Whether each is the other's nearest feature."""


class FeatureComparison(Shape):
    """The features of two SAEs matched by decoder cosine; dead features are left out."""

    snapshots: list[int]
    """Steps of the feature indexes of A and B."""
    num_features: list[int]
    """Number of features that fire, in A and in B."""
    cosine_edges: list[float]
    counts_a: list[int]
    """Histogram of A's features by cosine to their nearest feature in B."""
    counts_b: list[int]
    """Histogram of B's features by cosine to their nearest feature in A."""
    threshold: float
    num_mutual: int
    """Pairs that are each other's nearest, with a cosine of at least the threshold."""
    num_only_a: int
    """A's features whose nearest feature in B is below the threshold."""
    num_only_b: int
    """B's features whose nearest feature in A is below the threshold."""
    items: list[MatchedFeatures]
    """A page of the requested section; in `only_b`, each feature of B with its nearest in A."""
    total: int
    next_cursor: str | None
