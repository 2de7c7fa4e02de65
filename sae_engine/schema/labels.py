"""Labels over REST: who wrote them, how well they detect, and how they are made automatically."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from sae_engine.schema.features import FeatureSort
from sae_engine.schema.shape import Shape

LabelAuthor = Literal["person", "model"]


class DetectionScore(Shape):
    """How well a label tells contexts on which its feature fires from others, on held-out ones."""

    precision: float | None
    """Of the contexts said to activate, the share that do; null when none was said to."""
    recall: float
    """Of the contexts that activate, the share that was said to."""
    balanced_accuracy: float
    """Mean of the shares judged right of both kinds; 0.5 is a guess."""
    activating: int
    """Contexts shown on which the feature fires."""
    silent: int
    """Contexts shown on which it does not."""


class LabelOrigin(Shape):
    """Where a label comes from."""

    author: LabelAuthor
    model: str | None
    """The language model that proposed it."""
    prompt_version: str | None
    created_at: datetime | None
    """When it was last written; null for labels of a time when this was not noted."""
    score: DetectionScore | None


class FeatureLabel(Shape):
    """What is written about one feature, and by whom."""

    feature: int
    label: str
    notes: str
    starred: bool
    origin: LabelOrigin


LabelJobStatus = Literal["running", "finished", "cancelled", "failed", "interrupted"]


class LabelRequest(Shape):
    """Which features a language model shall label.

    Those that never fired have nothing to be labeled by, and a person's label stays as it is.
    """

    features: list[int] | None = Field(default=None, min_length=1, max_length=200_000)
    """These; unset takes the first `limit` by `sort`."""
    limit: int = Field(default=100, ge=1, le=200_000)
    sort: FeatureSort = "max_activation"
    relabel: bool = False
    """Also those that a model has labeled before."""
    snapshot: int | None = Field(default=None, ge=0)
    """A step; unset is the newest."""


class LabelEstimate(Shape):
    """What labeling will take; tokens are estimated from a few features' texts."""

    model: str
    features: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    """Without what a reasoning model thinks aloud."""
    cost: float | None
    """In the currency of the prices that are set; null without them."""


class LabelJob(Shape):
    """The labeling of some features, as it stands."""

    id: int
    status: LabelJobStatus
    model: str
    snapshot: int
    total: int
    labeled: int
    kept: int
    """Features whose label a person wrote meanwhile."""
    failed: int
    """Features that no usable answer came for."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    problem: str | None
    """The last thing that went wrong, in words."""
    created_at: datetime
    ended_at: datetime | None
