"""Token lookup over REST: from a text to the features that fire on it."""

from __future__ import annotations

from typing import Literal

from sae_engine.schema.features import Context
from sae_engine.schema.shape import Shape

TokenMatch = Literal["fold", "exact", "prefix", "substring", "text", "regex"]
LookupRank = Literal["f1", "lift", "recall", "precision", "max"]


def literal_text(text: str, match: TokenMatch) -> str:
    """The text to find in the corpus; `fold` ignores outer spaces unless there is nothing else."""
    return (text.strip(" ▁") or text) if match == "fold" else text


class MatchedToken(Shape):
    id: int
    text: str
    count: int
    """Positions in the index corpus that hold the token; for a text that is not a token, those in
    which it ends.
    """


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


class TextPlace(Shape):
    """A place in the corpus where a text stands that was looked up."""

    tokens: list[str]
    last: int
    """Place in `tokens` of the last token of the text."""
    position: int
    """Position of that token in its row."""
    row: int


class LookupResult(Shape):
    tokens: list[MatchedToken]
    features: list[FeatureMatch]
    total: int
    """Number of features that fire on at least `min_count` of the positions."""
    phrase: bool
    """The text was searched for in the corpus, not among the tokens; statistics are over the last
    token of each occurrence.
    """
    count: int
    """Positions that statistics are over: all that hold a matching token, or in which the text
    ends.
    """
    occurrences: int | None
    """How often the text occurs in the corpus, however it is split into tokens; null for parts of
    tokens.
    """
    places: list[TextPlace]
    """A few of the positions, evenly spaced, if the text was searched for in the corpus."""
    message: str | None
    """Why no features were found, in words; null if some were."""
    suggestions: list[str]
    """Similar spellings that do occur, most similar first, for a text that does not occur."""
    snapshot: int
