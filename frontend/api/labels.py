"""Calls about labels, written by people or proposed by a language model."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from frontend.api.connection import Connection
from frontend.api.sending import segment, sent
from sae_engine.schema.labels import FeatureLabel, LabelEstimate, LabelJob, LabelRequest

_LABELS = TypeAdapter(list[FeatureLabel])
_LABEL_JOBS = TypeAdapter(list[LabelJob])


class LabelCalls(Connection):
    """What is written about features, and who writes it."""

    def labels(self, run_id: str, features: Sequence[int] | None = None) -> list[FeatureLabel]:
        """What is written about a run's features, or about some of them, and by whom."""
        query = None if features is None else {"feature": list(features)}
        answer = self._send("GET", f"/runs/{segment(run_id)}/labels", query)
        return _LABELS.validate_json(answer.content)

    def estimate_labeling(self, run_id: str, body: LabelRequest) -> LabelEstimate:
        """What it would take to have features labeled by a language model."""
        path = f"/runs/{segment(run_id)}/labels/estimate"
        return LabelEstimate.model_validate_json(self._send("POST", path, body=sent(body)).content)

    def start_labeling(self, run_id: str, body: LabelRequest) -> LabelJob:
        """Have features labeled by a language model, in the background."""
        answer = self._send("POST", f"/runs/{segment(run_id)}/labels", body=sent(body))
        return LabelJob.model_validate_json(answer.content)

    def label_jobs(self, run_id: str) -> list[LabelJob]:
        """The labelings of a run, the newest first."""
        answer = self._send("GET", f"/runs/{segment(run_id)}/labels/jobs")
        return _LABEL_JOBS.validate_json(answer.content)

    def cancel_labeling(self, run_id: str) -> LabelJob:
        """End the labeling that is running; its labels stay."""
        answer = self._send("POST", f"/runs/{segment(run_id)}/labels/cancel")
        return LabelJob.model_validate_json(answer.content)
