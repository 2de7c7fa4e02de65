"""The shapes of what is asked about a person's own text: activations on it, steered text."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sae_engine.schema.shape import Shape

MAX_TEXT_CHARACTERS = 20_000
MAX_TEXT_TOKENS = 4096
MAX_PROMPT_CHARACTERS = 8_000

_ALLOWED_CONTROLS = frozenset("\t\n\f\r")
_NO_TEXT = {"Cc": "the control character", "Cs": "half a character,"}
"""By Unicode's category."""

ExcludedPosition = Literal["BOS", "eos", "pad"]
Side = Literal["plain", "steered"]
FeatureIndex = Annotated[int, Field(ge=0)]


def _readable(text: str, longest: int) -> str:
    """The text itself; raises `ValueError` for one that cannot be read as text."""
    if not text:
        raise ValueError("The text is empty; give at least one character.")
    if len(text) > longest:
        raise ValueError(f"The text has {len(text):,} characters; give at most {longest:,}.")
    for place, character in enumerate(text):
        what = _NO_TEXT.get(unicodedata.category(character))
        if what and character not in _ALLOWED_CONTROLS:
            raise ValueError(
                f"The text holds {what} U+{ord(character):04X} at position {place}; remove it."
            )
    return text


def _readable_text(text: str) -> str:
    return _readable(text, MAX_TEXT_CHARACTERS)


def _readable_prompt(text: str) -> str:
    return _readable(text, MAX_PROMPT_CHARACTERS)


class ActivationsRequest(Shape):
    """A text whose features are asked for."""

    text: Annotated[str, AfterValidator(_readable_text)]
    top: int = Field(default=10, ge=1, le=100)
    """The strongest features listed with each token; those that are not active never are."""
    features: list[FeatureIndex] = Field(default_factory=lambda: list[int](), max_length=50)
    """Features whose activation is wanted at every token, 0 included."""


class FeatureActivation(Shape):
    index: int
    activation: float


class ReadToken(Shape):
    """A token of the text, and the features that are active on it."""

    id: int
    text: str
    excluded: ExcludedPosition | None
    """Why no SAE is trained at this position and so none reads it; null at ordinary ones."""
    num_active: int
    total: float
    """Sum of all activations."""
    features: list[FeatureActivation]
    """Strongest first."""


class TextReading(Shape):
    """What an SAE makes of a text."""

    tokens: list[ReadToken]
    """As in training: rows of the run's `data.ctx_len` tokens, each after a BOS if the model has
    one.
    """
    activations: list[list[float]]
    """Of each feature that was asked for, one per token."""


class WatchedFeature(Shape):
    """A feature that was asked for, at every token."""

    index: int
    max_activation: float
    """On the index corpus."""
    activations: list[float]
    """One per token."""


class TextActivations(Shape):
    """The features of a text."""

    tokens: list[ReadToken]
    features: list[WatchedFeature]
    """Those that were asked for, in that order."""
    labels: dict[int, str]
    """Labels of the features in this answer that have one."""
    snapshot: int
    """Step of the SAE that answered."""


class SteeredFeature(Shape):
    """A feature whose decoder direction is added to the activations."""

    index: FeatureIndex
    strength: float = Field(ge=-100, le=100)
    """In units of the feature's largest activation on the index corpus; negative takes away."""


class SteerRequest(Shape):
    """A text to go on with, plain and steered."""

    prompt: Annotated[str, AfterValidator(_readable_prompt)]
    features: list[SteeredFeature] = Field(min_length=1, max_length=20)
    max_new_tokens: int = Field(default=40, ge=1, le=512)
    seed: int = Field(default=0, ge=0, le=2**53 - 1)
    """Of the sampling; both texts are drawn with the same random numbers."""
    temperature: float = Field(default=1.0, ge=0, le=10)
    """0 always takes the likeliest token."""


class SteerPhase(Shape):
    """What the next token waits for, in words, such as `loading the language model`."""

    phase: str


class SteerToken(Shape):
    """One more token of one of the two texts."""

    side: Side
    text: str
    """Empty while a character is incomplete."""


class SteerResult(Shape):
    """How the text goes on."""

    plain: str
    steered: str
    snapshot: int
    """Step of the SAE whose directions were added."""


class InferenceStatus(Shape):
    """What the process that holds the language model is doing."""

    state: Literal["off", "warming-up", "ready", "busy"]
    """`off`: started by the next question, and ended when there was none for a while."""
    phase: str | None
    """What it does now, in words, such as `loading the language model`; null when `off`, `ready`.
    """
    waiting: int
    """Questions that are not yet answered in full."""
