"""Labels over REST: who wrote them, how well they detect, and how they are made automatically."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sae_engine.schema.api import Shape

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
