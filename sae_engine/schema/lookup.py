"""Token lookup over REST: from a text to the features that fire on it."""

from __future__ import annotations

from typing import Literal

from sae_engine.schema.features import Context
from sae_engine.schema.shape import Shape

TokenMatch = Literal["fold", "exact", "prefix", "substring"]
LookupRank = Literal["f1", "lift", "recall", "precision", "max"]


class MatchedToken(Shape):
    id: int
    text: str
    count: int
    """Positions in the index corpus; 0 if the token does not occur there."""


class FeatureMatch(Shape):
    """A feature that fires on the text that was looked up."""

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
    """The text is several tokens; statistics are over the positions of the last one."""
    count: int
    """Positions of all matching tokens, or of the phrase."""
    message: str | None
    """Why no features were found, in words; null if some were."""
    suggestions: list[str]
    """Similar spellings that do occur, most similar first, for a text that does not occur."""
    snapshot: int
