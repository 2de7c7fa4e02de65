"""Shapes of what became of a feature while its SAE was trained."""

from __future__ import annotations

from sae_engine.schema.features import Density, FeatureState
from sae_engine.schema.shape import Shape


class FeatureMoment(Shape):
    """A feature in one snapshot."""

    step: int
    tokens: int
    """Training tokens seen by then."""
    density: Density
    max_activation: float
    state: FeatureState
    decoder_cosine: float
    """Between its decoder row then and in the newest snapshot."""


class FeatureHistory(Shape):
    """A feature over all snapshots, in the order of their steps."""

    index: int
    moments: list[FeatureMoment]
    born_step: int | None
    """First snapshot in which it fires, if it did not in one before."""
    died_step: int | None
    """First of the snapshots up to the newest in which it does not fire, if it did before."""
