"""What an export reads: a feature index, and the run's name, configuration and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.config import RunConfig
from sae_engine.schema.features import Context, FeatureDetail, Interval
from sae_engine.schema.labels import FeatureLabel, LabelOrigin

NUM_CONTEXTS = 20
WINDOW = 16
"""Tokens on either side of a context's peak."""


@dataclass(frozen=True)
class ExportSource:
    index: FeatureIndex
    run_id: str
    run_name: str
    config: RunConfig
    labels: Mapping[int, FeatureLabel]
    include_dead: bool = False
    """Also export features that never fired in the index."""
    style: str = ""
    """Style sheet of the static pages."""
    report: Callable[[float], None] = lambda _share: None
    """Called with the share of the features that are written."""

    @cached_property
    def chosen(self) -> list[int]:
        """Exported features, ascending."""
        if self.include_dead:
            return list(range(self.index.d_sae))
        return np.flatnonzero(self.index.fired).tolist()

    @property
    def left_out(self) -> str:
        """A sentence about features that are not exported; empty if all are."""
        missing = self.index.d_sae - len(self.chosen)
        if not missing:
            return ""
        return (
            f"{missing:,} of {self.index.d_sae:,} features never fired in the "
            f"{self.index.num_tokens:,} tokens of this index and are left out."
        )

    @cached_property
    def texts(self) -> dict[int, str]:
        """Texts of the labels, without empty ones."""
        return {index: written.label for index, written in self.labels.items() if written.label}

    @cached_property
    def stars(self) -> frozenset[int]:
        """The starred features."""
        return frozenset(index for index, written in self.labels.items() if written.starred)

    def origin(self, index: int) -> LabelOrigin | None:
        """Where a feature's label comes from; None without a label."""
        written = self.labels.get(index)
        return written.origin if written and written.label else None

    def features(self) -> Iterator[FeatureDetail]:
        """Everything about each exported feature, in order."""
        for place, index in enumerate(self.chosen):
            self.report(place / len(self.chosen))
            written = self.labels.get(index)
            yield self.index.feature(
                index,
                labels=self.texts,
                stars=self.stars,
                notes=written.notes if written else "",
                num_contexts=NUM_CONTEXTS,
                window=WINDOW,
            )


def all_contexts(feature: FeatureDetail) -> Iterator[tuple[Context, Interval | None]]:
    """A feature's strongest contexts, then those of each interval."""
    for context in feature.contexts:
        yield context, None
    for interval in feature.intervals:
        for context in interval.contexts:
            yield context, interval


class FeatureWriter(NamedTuple):
    """An export format. Bytes are upper bounds, rounded up from measurements."""

    write: Callable[[ExportSource, Path], None]
    """Writes the features of a source into an existing folder."""
    bytes_per_feature: int
    """With 20 contexts, and 25 more from intervals."""
    bytes_per_pair: int = 0
    """Per token and feature that fires on it."""

    def expected_bytes(self, source: ExportSource) -> int:
        """Upper bound of the size of an export, roughly."""
        pairs = len(source.index.arrays.pair_latents)
        return len(source.chosen) * self.bytes_per_feature + pairs * self.bytes_per_pair


def slug(text: str) -> str:
    """Text as part of a file name or identifier: lower case, digits, `-` and `.`."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"
