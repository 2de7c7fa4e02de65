"""Features over REST: in lists, in full, and over the snapshots of a run."""

from __future__ import annotations

from typing import Literal

from sae_engine.schema.shape import Shape

FeatureState = Literal["alive", "dead", "dense"]
FeatureSort = Literal["density", "max_activation", "index", "label", "starred", "clarity"]
FeatureMark = Literal["starred", "labeled", "unlabeled"]
SortOrder = Literal["asc", "desc"]

DENSE_FRACTION = 0.1
"""A latent that fires on a larger share of tokens is `dense`."""
CLEAR = 0.5
"""The clarity from which a feature has a provisional name."""


class Density(Shape):
    fraction: float
    fired: int
    seen: int


class Feature(Shape):
    index: int
    density: Density
    max_activation: float
    state: FeatureState
    label: str | None
    starred: bool
    clarity: float
    """How well one word describes the feature, from 0 to 1: the F1 of its best word, with 20
    added to the denominator so that rare words and features score lower.
    """
    name: str | None
    """That word, as a provisional name, if the clarity is at least 0.5."""


class Context(Shape):
    """Part of one row of text around a peak activation."""

    tokens: list[str]
    activations: list[float]
    activation: float
    """Activation at the peak."""
    peak: int
    """Position of the peak in `tokens`."""
    position: int
    """Position of the peak in its row; 0 is the first token after BOS."""
    row: int
    copies: int
    """Number of contexts with the same tokens that are shown as this one, including itself."""


class FeatureRow(Feature):
    """A feature in a list, with its strongest example and its top tokens."""

    example: Context | None
    top_tokens: list[str]


class FeaturePage(Shape):
    items: list[FeatureRow]
    next_cursor: str | None
    total: int
    snapshot: int
    """Step of the feature index."""


class Histogram(Shape):
    """Counts of positive activations between neighboring edges."""

    edges: list[float]
    counts: list[int]


class Interval(Shape):
    """Examples whose activation lies in one slice of the feature's range."""

    low: float
    high: float
    share: float
    """Share of the feature's positive activations that lie in the interval."""
    contexts: list[Context]


class TokenStatistics(Shape):
    """How a token and a feature are associated in the index corpus."""

    id: int
    text: str
    count: int
    """Positions that hold the token and on which the feature fires."""
    f1: float
    lift: float
    recall: float
    precision: float
    mean_activation: float
    max_activation: float


class TokenLogit(Shape):
    id: int
    text: str
    value: float


class Logits(Shape):
    positive: list[TokenLogit]
    negative: list[TokenLogit]


class Neighbour(Shape):
    index: int
    cosine: float
    label: str | None
    starred: bool
    top_tokens: list[str]


class FeatureDetail(Feature):
    snapshot: int
    histogram: Histogram
    contexts: list[Context]
    intervals: list[Interval]
    top_tokens: list[TokenStatistics]
    logits: Logits | None
    """Null in snapshots made during training."""
    neighbours: list[Neighbour] | None
    """Null in snapshots made during training."""
    notes: str


class FeatureMoment(Shape):
    """A feature in one snapshot."""

    step: int
    tokens: int
    """Tokens trained on until then."""
    density: Density
    max_activation: float
    state: FeatureState
    decoder_cosine: float
    """Cosine between its decoder row in this snapshot and in the newest one."""


class FeatureHistory(Shape):
    """A feature over all snapshots, in the order of their steps."""

    index: int
    moments: list[FeatureMoment]
    born_step: int | None
    """Step of the first snapshot in which it fires on the tokens that all snapshots cover; null if
    it does in the first one, or never.
    """
    died_step: int | None
    """Step of the snapshot after the last one in which it fires on these tokens; null if it does in
    the newest one, or never.
    """
    missing_steps: list[int]
    """Steps of snapshots that are left out, because their files are lost or damaged."""
