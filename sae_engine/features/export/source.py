"""What is exported: one feature index, and what its run says about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.config import RunConfig
from sae_engine.schema.features import FeatureDetail
from sae_engine.schema.labels import FeatureLabel

NUM_CONTEXTS = 20
WINDOW = 16
"""Tokens on either side of a context's peak."""


@dataclass(frozen=True)
class ExportSource:
    """A feature index to export, with its run's name and configuration and its features' labels."""

    index: FeatureIndex
    run_id: str
    run_name: str
    config: RunConfig
    labels: Mapping[int, FeatureLabel]
    include_dead: bool = False
    """Export also features that never fired in the index."""

    @cached_property
    def chosen(self) -> list[int]:
        """Features that are exported, ascending."""
        if self.include_dead:
            return list(range(self.index.d_sae))
        return np.flatnonzero(np.diff(self.index.arrays.latent_starts)).tolist()

    @property
    def left_out(self) -> str:
        """Which features are not exported, in a sentence; empty if all are."""
        missing = self.index.d_sae - len(self.chosen)
        if not missing:
            return ""
        return (
            f"{missing:,} of {self.index.d_sae:,} features never fired in the "
            f"{self.index.num_tokens:,} tokens of this index and are left out."
        )

    @cached_property
    def texts(self) -> dict[int, str]:
        """The labels' texts, empty ones left out."""
        return {index: written.label for index, written in self.labels.items() if written.label}

    def features(self) -> Iterator[FeatureDetail]:
        """Everything about each exported feature, one after the other."""
        for index in self.chosen:
            written = self.labels.get(index)
            yield self.index.feature(
                index,
                labels=self.texts,
                notes=written.notes if written else "",
                starred=written.starred if written else False,
                num_contexts=NUM_CONTEXTS,
                window=WINDOW,
            )


def slug(text: str) -> str:
    """A text as part of a file's name or an identifier: lower case, digits, `-` and `.`."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"
