"""Calls that compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from frontend.api.connection import Connection
from sae_engine.schema.analysis import (
    AnalysisProgress,
    Comparison,
    FeatureComparison,
    MatchSection,
)
from sae_engine.schema.features import SortOrder


class MatchQuery(TypedDict, total=False):
    """Which matched features to list, and in which order."""

    section: MatchSection | None
    threshold: float | None
    order: SortOrder | None
    limit: int | None
    cursor: str | None


class ComparisonCalls(Connection):
    """Runs side by side."""

    def compare(self, run_ids: Sequence[str], *, max_points: int | None = None) -> Comparison:
        """The settings in which runs differ, and their curves."""
        query = {"runs": ",".join(run_ids), "max_points": max_points}
        return self._call(Comparison, "GET", "/compare", query)

    def compare_features(
        self, run_a: str, run_b: str, **query: Unpack[MatchQuery]
    ) -> FeatureComparison | AnalysisProgress:
        """Two runs' features matched by decoder rows, or the progress of the computation."""
        runs = {"runs": f"{run_a},{run_b}"}
        return self._call_computed(FeatureComparison, "/compare/features", {**runs, **query})
