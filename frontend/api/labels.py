"""Calls about labels, written by people or proposed by a language model."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.api.connection import Connection, run_path
from sae_engine.schema.labels import (
    FeatureLabel,
    LabelEstimate,
    LabelJob,
    LabelPatch,
    LabelRequest,
    LabelUpdate,
)


class LabelCalls(Connection):
    """Labels of features, and the jobs that write them."""

    def labels(self, run_id: str, features: Sequence[int] | None = None) -> list[FeatureLabel]:
        """Labels, notes and stars of a run's features, all or only `features`."""
        return self._call(
            list[FeatureLabel], "GET", run_path(run_id, "labels"), {"feature": features}
        )

    def label(self, run_id: str, index: int, update: LabelUpdate) -> None:
        """Set a feature's label, notes and star."""
        self._send("PUT", run_path(run_id, "features", index, "label"), body=update)

    def patch_labels(self, run_id: str, body: LabelPatch) -> list[FeatureLabel]:
        """Label or star several features at once; what is unset stays as it is."""
        return self._call(list[FeatureLabel], "PATCH", run_path(run_id, "labels"), body=body)

    def estimate_labeling(self, run_id: str, body: LabelRequest) -> LabelEstimate:
        """Requests, tokens and cost of labeling features with a language model."""
        path = run_path(run_id, "labels", "estimate")
        return self._call(LabelEstimate, "POST", path, body=body)

    def start_labeling(self, run_id: str, body: LabelRequest) -> LabelJob:
        """Label features with a language model, in the background."""
        return self._call(LabelJob, "POST", run_path(run_id, "labels"), body=body)

    def label_jobs(self, run_id: str) -> list[LabelJob]:
        """The labeling jobs of a run, newest first."""
        return self._call(list[LabelJob], "GET", run_path(run_id, "labels", "jobs"))

    def cancel_labeling(self, run_id: str) -> LabelJob:
        """End the running labeling job; its labels stay."""
        return self._call(LabelJob, "POST", run_path(run_id, "labels", "cancel"))
