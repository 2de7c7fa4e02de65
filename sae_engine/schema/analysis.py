"""Shapes of what looks at many features at once: their densities, their map, two SAEs compared."""

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
    """Densities, eight to a factor of ten; the last one is 1."""
    counts: list[int]
    """Features whose density lies between neighboring edges, the lower one included."""
    num_dead: int
    """Features that never fired; they have no bar."""


class AnalysisProgress(Shape):
    """An answer that is being computed; ask again in a second."""

    phase: str
    """What is being done, in words."""
    fraction: float | None
    """Share of the phase that is done, where it is known."""


class FeatureMap(Shape):
    """Features on a plane, near each other where their decoder rows point the same way."""

    snapshot: int
    index: list[int]
    """Features on the map; the other lists are parallel to this one."""
    x: list[float]
    y: list[float]
    density: list[float]
    top_tokens: list[list[str]]
    labels: dict[int, str]
    """By feature, of those that have one."""
    num_dead: int
    """Features that never fired, which are not on the map."""


class ConfigDifference(Shape):
    """One field of the configuration in which runs differ."""

    field: str
    """Dotted name, such as `sae.k`."""
    values: list[Any]
    """One for each run."""


class BestValue(Shape):
    """The best that a metric was, and at which step first."""

    value: float
    step: int


class Comparison(Shape):
    """Runs side by side."""

    runs: list[Run]
    differences: list[ConfigDifference]
    curves: list[MetricsSeries]
    """One for each run."""
    best: list[dict[str, BestValue]]
    """One for each run: by metric, of those that are better lower or better higher."""
    obstacle: str | None
    """Why the features of the first two cannot be matched; null when they can."""


class MatchedFeatures(Shape):
    """A feature of SAE A and one of SAE B."""

    a: FeatureRow
    b: FeatureRow
    cosine: float
    """Between their decoder rows."""
    mutual: bool
    """Whether each is the other's nearest."""


class FeatureComparison(Shape):
    """The features of two SAEs matched by their decoder rows; those that are dead are left out."""

    snapshots: list[int]
    """Steps of the indexes that answered, A's and B's."""
    num_features: list[int]
    """How many fire, in A and in B."""
    cosine_edges: list[float]
    counts_a: list[int]
    """A's features by the cosine to their nearest in B, between neighboring edges."""
    counts_b: list[int]
    threshold: float
    num_mutual: int
    """Pairs that are each other's nearest and at least as near as the threshold."""
    num_only_a: int
    """A's features that are nearer than the threshold to none of B."""
    num_only_b: int
    items: list[MatchedFeatures]
    """A page of the section that was asked for; of `only_b`, each of B with its nearest in A."""
    total: int
    next_cursor: str | None
