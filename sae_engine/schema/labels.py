"""Labels over REST: what people write, and jobs in which a language model labels features."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from sae_engine.schema.features import FeatureSort
from sae_engine.schema.shape import Shape, StoredShape

LabelAuthor = Literal["person", "model"]


class LabelUpdate(StoredShape):
    label: str = Field(default="", max_length=500)
    notes: str = Field(default="", max_length=20_000)
    starred: bool = False


class LabelPatch(StoredShape):
    """One change to the labels, notes or stars of several features; what is unset stays."""

    features: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=500)
    label: str | None = Field(default=None, max_length=500)
    notes: str | None = Field(default=None, max_length=20_000)
    starred: bool | None = None
    replaces: LabelUpdate | None = None
    """What the writer saw. If another person has changed it since, nothing is written (409)."""


class DetectionScore(Shape):
    """How well a label separates held-out contexts on which its feature fires from others."""

    precision: float | None
    """Share of the contexts predicted to activate that do; null if none was predicted to."""
    recall: float
    """Share of the activating contexts that were predicted to activate."""
    balanced_accuracy: float
    """Mean accuracy over activating and silent contexts; 0.5 is chance."""
    activating: int
    """Number of contexts on which the feature fires."""
    silent: int
    """Number of contexts on which it does not fire."""


class LabelOrigin(Shape):
    """Where a label comes from."""

    author: LabelAuthor
    model: str | None
    """The language model that wrote it; null for a person."""
    prompt_version: str | None
    created_at: datetime | None
    """When it was last written; null if unknown."""
    score: DetectionScore | None


class FeatureLabel(Shape):
    """The label, notes and star of one feature, and where the label comes from."""

    feature: int
    label: str
    notes: str
    starred: bool
    origin: LabelOrigin


LabelJobStatus = Literal["running", "finished", "cancelled", "failed", "interrupted"]


class LabelRequest(Shape):
    """Which features a language model should label.

    Features that never fired and features labeled by a person are skipped.
    """

    features: list[int] | None = Field(default=None, min_length=1, max_length=200_000)
    """Features to label; if unset, the first `limit` by `sort`."""
    limit: int = Field(default=100, ge=1, le=200_000)
    sort: FeatureSort = "max_activation"
    relabel: bool = False
    """Also replace labels written by a model."""
    snapshot: int | None = Field(default=None, ge=0)
    """Step of the snapshot; if unset, the newest."""


class LabelEstimate(Shape):
    """What labeling will take, estimated from the texts of a few features."""

    model: str
    features: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    """Without a reasoning model's thinking."""
    cost: float | None
    """In the currency of the configured prices; null without prices."""


class LabelJob(Shape):
    """A labeling job and its progress."""

    id: int
    status: LabelJobStatus
    model: str
    snapshot: int
    total: int
    labeled: int
    kept: int
    """Features skipped because a person labeled them during the job."""
    failed: int
    """Features without a usable answer."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    problem: str | None
    """The last error, in words."""
    created_at: datetime
    ended_at: datetime | None
