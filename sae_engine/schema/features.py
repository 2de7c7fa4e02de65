"""Features as they travel over REST, and problems."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from sae_engine.schema.shape import Shape, StoredShape

FeatureState = Literal["alive", "dead", "dense"]


FeatureSort = Literal["density", "max_activation", "index", "label"]


SortOrder = Literal["asc", "desc"]


TokenMatch = Literal["fold", "exact", "prefix", "substring"]


LookupRank = Literal["f1", "lift", "recall", "precision", "max"]


ExportFormat = Literal["saelens", "html", "jsonl", "neuronpedia", "parquet"]


DENSE_FRACTION = 0.1
"""A latent that fires on a larger share of tokens is `dense`."""


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


class Context(Shape):
    """A piece of one row around a peak activation."""

    tokens: list[str]
    activations: list[float]
    activation: float
    """The peak."""
    peak: int
    """Where the peak stands in `tokens`."""
    position: int
    """Where the peak stands in its row; 0 is the first token after BOS."""
    row: int
    copies: int
    """How many contexts with the same tokens were folded into this one, itself included."""


class FeatureRow(Feature):
    """A feature in a list, with a glimpse of what it is about."""

    example: Context | None
    top_tokens: list[str]


class FeaturePage(Shape):
    items: list[FeatureRow]
    next_cursor: str | None
    total: int
    snapshot: int
    """Step of the index that answered."""


class Histogram(Shape):
    """Counts of positive activations between neighboring edges."""

    edges: list[float]
    counts: list[int]


class Interval(Shape):
    """Examples whose activation lies in one slice of the feature's range."""

    low: float
    high: float
    share: float
    """Share of the feature's positive activations that lie in it."""
    contexts: list[Context]


class TokenStatistics(Shape):
    """How a token and a latent go together over the index corpus."""

    id: int
    text: str
    count: int
    """Positions that hold the token and on which the latent is active."""
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


class FeatureDetail(Feature):
    snapshot: int
    histogram: Histogram
    contexts: list[Context]
    intervals: list[Interval]
    top_tokens: list[TokenStatistics]
    logits: Logits | None
    """Absent in a snapshot made while training."""
    neighbours: list[Neighbour] | None
    notes: str
    starred: bool


class LabelUpdate(StoredShape):
    label: str = Field(default="", max_length=500)
    notes: str = Field(default="", max_length=20_000)
    starred: bool = False


class MatchedToken(Shape):
    id: int
    text: str
    count: int
    """Positions in the index corpus; 0 says that the corpus does not contain it."""


class FeatureMatch(Shape):
    """A feature that answers a token lookup."""

    index: int
    f1: float
    lift: float
    recall: float
    precision: float
    mean_activation: float
    max_activation: float
    count: int
    density: float
    label: str | None
    example: Context | None


class LookupResult(Shape):
    tokens: list[MatchedToken]
    features: list[FeatureMatch]
    phrase: bool
    """The text is several tokens: statistics are over the positions of its last one."""
    count: int
    """Positions of the whole group, or of the phrase."""
    message: str | None
    """Why there are no features, in words; null when there are some."""
    suggestions: list[str]
    """For a text that does not occur: tokens that do and are spelled nearly so, nearest first."""
    snapshot: int


class Problem(Shape):
    """An error body, `application/problem+json` (RFC 9457)."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = Field(default_factory=lambda: list[FieldProblem]())


class FieldProblem(Shape):
    """One field of the request that is wrong."""

    field: str
    """Dotted name, such as `sae.k`."""
    message: str


Problem.model_rebuild()
