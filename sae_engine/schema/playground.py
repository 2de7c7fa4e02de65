"""Requests and answers about the user's own text: feature activations, and steered text."""

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
"""By Unicode category."""

ExcludedPosition = Literal["BOS", "eos", "pad", "outlier"]
Side = Literal["plain", "steered"]
FeatureIndex = Annotated[int, Field(ge=0)]


def _readable(text: str, longest: int) -> str:
    """Return the text; raises `ValueError` if it is empty, too long or not plain text."""
    if not text:
        raise ValueError("The text is empty; give at least one character.")
    if len(text) > longest:
        raise ValueError(f"The text has {len(text):,} characters; give at most {longest:,}.")
    for place, character in enumerate(text):
        what = _NO_TEXT.get(unicodedata.category(character))
        if what and character not in _ALLOWED_CONTROLS:
            raise ValueError(
                f"The text contains {what} U+{ord(character):04X} at position {place}; remove it."
            )
    return text


def _readable_text(text: str) -> str:
    return _readable(text, MAX_TEXT_CHARACTERS)


def _readable_prompt(text: str) -> str:
    return _readable(text, MAX_PROMPT_CHARACTERS)


class ActivationsRequest(Shape):
    """Asks which features are active on a text."""

    text: Annotated[str, AfterValidator(_readable_text)]
    top: int = Field(default=10, ge=1, le=100)
    """How many of each token's strongest features to list; inactive ones are never listed."""
    features: list[FeatureIndex] = Field(default_factory=lambda: list[int](), max_length=50)
    """Features whose activations to return at every token, 0 included."""


class FeatureActivation(Shape):
    index: int
    activation: float


class ReadToken(Shape):
    """A token of the text and the features active on it."""

    id: int
    text: str
    excluded: ExcludedPosition | None
    """Why SAEs skip this position, as in training; null at ordinary positions."""
    num_active: int
    total: float
    """Sum of all activations."""
    features: list[FeatureActivation]
    """Strongest first."""


class TextReading(Shape):
    """An SAE's activations on a text."""

    tokens: list[ReadToken]
    """As in training: rows of the run's `data.ctx_len` tokens, each starting with BOS if the model
    has one.
    """
    activations: list[list[float]]
    """For each requested feature, one value per token."""


class WatchedFeature(Shape):
    """A requested feature's activations at every token."""

    index: int
    max_activation: float
    """On the index corpus."""
    activations: list[float]
    """One per token."""


class TextActivations(Shape):
    """The features active on a text."""

    tokens: list[ReadToken]
    features: list[WatchedFeature]
    """The requested features, in the order requested."""
    labels: dict[int, str]
    """Labels of the features in this answer, where they have one."""
    starred: list[int]
    """The features in this answer that are starred."""
    snapshot: int
    """Step of the SAE used."""


class SteeredFeature(Shape):
    """A feature whose decoder direction is added to the activations."""

    index: FeatureIndex
    strength: float = Field(ge=-100, le=100)
    """In units of the feature's largest activation on the index corpus; negative subtracts."""


class SteerRequest(Shape):
    """Asks for continuations of a prompt, plain and steered."""

    prompt: Annotated[str, AfterValidator(_readable_prompt)]
    features: list[SteeredFeature] = Field(min_length=1, max_length=20)
    max_new_tokens: int = Field(default=40, ge=1, le=512)
    seed: int = Field(default=0, ge=0, le=2**53 - 1)
    """For sampling; both texts use the same random numbers."""
    temperature: float = Field(default=1.0, ge=0, le=10)
    """0 always takes the most likely token."""


class SteerPhase(Shape):
    """What the next token is waiting for, such as `loading the language model`."""

    phase: str


class SteerToken(Shape):
    """The next token of one of the two texts."""

    side: Side
    text: str
    """Empty if the token ends in the middle of a character."""


class SteerResult(Shape):
    """The two continuations."""

    plain: str
    steered: str
    snapshot: int
    """Step of the SAE whose directions were added."""


class InferenceStatus(Shape):
    """State of the process that holds the language model."""

    state: Literal["off", "warming-up", "ready", "busy"]
    """`off`: the next request starts the process; it ends after a while without requests."""
    phase: str | None
    """What it is doing now, such as `loading the language model`; null when `off` or `ready`."""
    waiting: int
    """Requests not yet fully answered."""
