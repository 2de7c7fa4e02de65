"""Calls that compare runs."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.api.connection import Connection
from sae_engine.schema.analysis import (
    AnalysisProgress,
    Comparison,
    FeatureComparison,
    MatchSection,
)
from sae_engine.schema.features import SortOrder


class ComparisonCalls(Connection):
    """Runs side by side."""

    def compare(self, run_ids: Sequence[str], *, max_points: int | None = None) -> Comparison:
        """The settings in which runs differ, and their curves."""
        query = {"runs": ",".join(run_ids), "max_points": max_points}
        return self._call(Comparison, "GET", "/compare", query)

    def compare_features(
        self,
        run_a: str,
        run_b: str,
        *,
        section: MatchSection | None = None,
        threshold: float | None = None,
        order: SortOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> FeatureComparison | AnalysisProgress:
        """Two runs' features matched by decoder rows, or the progress of the computation."""
        query = {"runs": f"{run_a},{run_b}", "section": section, "threshold": threshold}
        query |= {"order": order, "limit": limit, "cursor": cursor}
        return self._call_computed(FeatureComparison, "/compare/features", query)
