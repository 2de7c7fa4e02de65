"""A typed client of the REST API; the pages use it, and a notebook can.

>>> client = WorkbenchClient("http://127.0.0.1:8501")
>>> run = client.create_run(RunCreate(preset="tiny"))
>>> client.lookup(run.id, " import").features[0].index
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from frontend.connection import ApiProblem, Connection
from sae_engine.schema.analysis import (
    AnalysisProgress,
    Comparison,
    DensityHistogram,
    FeatureComparison,
    FeatureMap,
    MatchSection,
)
from sae_engine.schema.api import (
    FeatureDetail,
    FeaturePage,
    FeatureSort,
    FeatureState,
    LabelUpdate,
    LookupRank,
    LookupResult,
    Problem,
    SortOrder,
    TokenMatch,
)
from sae_engine.schema.history import FeatureHistory
from sae_engine.schema.labels import FeatureLabel, LabelEstimate, LabelJob, LabelRequest
from sae_engine.schema.machine import Health, Preset
from sae_engine.schema.probe import (
    InferenceStatus,
    SteerPhase,
    SteerResult,
    SteerToken,
    TextActivations,
)
from sae_engine.schema.runs import (
    MetricsSeries,
    Notice,
    Run,
    RunCreate,
    RunPage,
    RunPatch,
    RunSort,
    RunStatus,
    Snapshot,
    TagCount,
)

WARM_UP_SECONDS = 180.0
"""How long an answer may take that waits for the language model to be loaded."""

__all__ = ["ApiProblem", "WorkbenchClient"]

_PRESETS = TypeAdapter(list[Preset])
_SNAPSHOTS = TypeAdapter(list[Snapshot])
_TAGS = TypeAdapter(list[TagCount])
_NOTICES = TypeAdapter(list[Notice])
_LABELS = TypeAdapter(list[FeatureLabel])
_LABEL_JOBS = TypeAdapter(list[LabelJob])


class WorkbenchClient(Connection):
    """The calls of the API; safe to share between threads."""

    def health(self) -> Health:
        """Whether the server is up; needs no token."""
        return self._read(Health, "/health")

    def presets(self) -> list[Preset]:
        """The recipes a run can start from, in the order they are offered."""
        return _PRESETS.validate_json(self._send("GET", "/config/presets").content)

    def runs(
        self,
        *,
        status: RunStatus | Sequence[RunStatus] | None = None,
        q: str | None = None,
        tags: Sequence[str] | None = None,
        group_id: str | None = None,
        archived: bool | None = None,
        sort: RunSort | None = None,
        order: SortOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> RunPage:
        """One page of runs that have all `tags`, newest first; those of a sweep have its
        `group_id`. Sorted by a metric, the lowest come first unless `order` says otherwise.
        """
        query: dict[str, object] = {"status": status, "q": q, "tag": tags, "group_id": group_id}
        query |= {"archived": archived, "sort": sort, "order": order}
        return self._read(RunPage, "/runs", query | {"limit": limit, "cursor": cursor})

    def tags(self) -> list[TagCount]:
        """Every tag, the commonest first."""
        return _TAGS.validate_json(self._send("GET", "/tags").content)

    def create_run(self, body: RunCreate, *, idempotency_key: str | None = None) -> Run:
        """Queue a run; the same key gives back the same run however often it is sent."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._send("POST", "/runs", body=_sent(body), headers=headers)
        return Run.model_validate_json(answer.content)

    def run(self, run_id: str) -> Run:
        """One run as it stands now."""
        return self._read(Run, f"/runs/{_segment(run_id)}")

    def update_run(self, run_id: str, patch: RunPatch) -> Run:
        """Change a run's name, tags, notes or place in the archive."""
        answer = self._send("PATCH", f"/runs/{_segment(run_id)}", body=_sent(patch))
        return Run.model_validate_json(answer.content)

    def delete_run(self, run_id: str) -> None:
        """Delete a run that has ended, its files included."""
        self._send("DELETE", f"/runs/{_segment(run_id)}")

    def stop_run(self, run_id: str, *, force: bool = False) -> Run:
        """Ask a run to end soon and keep its features; `force` skips building them."""
        query = {"force": force} if force else {}
        answer = self._send("POST", f"/runs/{_segment(run_id)}/stop", query)
        return Run.model_validate_json(answer.content)

    def resume_run(self, run_id: str) -> Run:
        """Queue a run that ended early to go on from its last checkpoint."""
        answer = self._send("POST", f"/runs/{_segment(run_id)}/resume")
        return Run.model_validate_json(answer.content)

    def metrics(
        self, run_id: str, *, since_step: int | None = None, max_points: int | None = None
    ) -> MetricsSeries:
        """A run's curves, from the first point after `since_step`."""
        query = {"since_step": since_step, "max_points": max_points}
        return self._read(MetricsSeries, f"/runs/{_segment(run_id)}/metrics", query)

    def notices(self, run_id: str) -> list[Notice]:
        """What the run left for people to read, oldest first."""
        answer = self._send("GET", f"/runs/{_segment(run_id)}/notices")
        return _NOTICES.validate_json(answer.content)

    def log(self, run_id: str, *, tail: int = 200) -> str:
        """The last lines of a run's log."""
        return self._send("GET", f"/runs/{_segment(run_id)}/log", {"tail": tail}).text

    def snapshots(self, run_id: str) -> list[Snapshot]:
        """The feature indexes made so far, in the order of their steps."""
        answer = self._send("GET", f"/runs/{_segment(run_id)}/snapshots")
        return sorted(_SNAPSHOTS.validate_json(answer.content), key=lambda s: s.step)

    def features(
        self,
        run_id: str,
        *,
        snapshot: int | None = None,
        sort: FeatureSort | None = None,
        order: SortOrder | None = None,
        min_density: float | None = None,
        max_density: float | None = None,
        state: FeatureState | None = None,
        q: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> FeaturePage:
        """One page of a snapshot's features; no `snapshot` is the latest."""
        query = {
            "snapshot": snapshot,
            "sort": sort,
            "order": order,
            "min_density": min_density,
            "max_density": max_density,
            "state": state,
            "q": q,
            "limit": limit,
            "cursor": cursor,
        }
        return self._read(FeaturePage, f"/runs/{_segment(run_id)}/features", query)

    def feature(self, run_id: str, index: int, *, snapshot: int | None = None) -> FeatureDetail:
        """Everything a snapshot knows about one feature."""
        query = {"snapshot": snapshot}
        return self._read(FeatureDetail, f"/runs/{_segment(run_id)}/features/{index}", query)

    def history(self, run_id: str, index: int) -> FeatureHistory:
        """What became of one feature over all snapshots."""
        return self._read(FeatureHistory, f"/runs/{_segment(run_id)}/features/{index}/history")

    def label(self, run_id: str, index: int, update: LabelUpdate) -> None:
        """Set a feature's label, notes and star."""
        path = f"/runs/{_segment(run_id)}/features/{index}/label"
        self._send("PUT", path, body=update.model_dump(mode="json"))

    def labels(self, run_id: str, features: Sequence[int] | None = None) -> list[FeatureLabel]:
        """What is written about a run's features, or about some of them, and by whom."""
        query = None if features is None else {"feature": list(features)}
        answer = self._send("GET", f"/runs/{_segment(run_id)}/labels", query)
        return _LABELS.validate_json(answer.content)

    def estimate_labeling(self, run_id: str, body: LabelRequest) -> LabelEstimate:
        """What it would take to have features labeled by a language model."""
        path = f"/runs/{_segment(run_id)}/labels/estimate"
        return LabelEstimate.model_validate_json(self._send("POST", path, body=_sent(body)).content)

    def start_labeling(self, run_id: str, body: LabelRequest) -> LabelJob:
        """Have features labeled by a language model, in the background."""
        answer = self._send("POST", f"/runs/{_segment(run_id)}/labels", body=_sent(body))
        return LabelJob.model_validate_json(answer.content)

    def label_jobs(self, run_id: str) -> list[LabelJob]:
        """The labelings of a run, the newest first."""
        answer = self._send("GET", f"/runs/{_segment(run_id)}/labels/jobs")
        return _LABEL_JOBS.validate_json(answer.content)

    def cancel_labeling(self, run_id: str) -> LabelJob:
        """End the labeling that is running; its labels stay."""
        answer = self._send("POST", f"/runs/{_segment(run_id)}/labels/cancel")
        return LabelJob.model_validate_json(answer.content)

    def lookup(
        self,
        run_id: str,
        text: str,
        *,
        match: TokenMatch | None = None,
        rank: LookupRank | None = None,
        min_count: int | None = None,
        limit: int | None = None,
        snapshot: int | None = None,
    ) -> LookupResult:
        """The features that go with a token or a phrase."""
        query = {
            "text": text,
            "match": match,
            "rank": rank,
            "min_count": min_count,
            "limit": limit,
            "snapshot": snapshot,
        }
        return self._read(LookupResult, f"/runs/{_segment(run_id)}/lookup", query)

    def activations(
        self,
        run_id: str,
        text: str,
        *,
        top: int = 10,
        features: Sequence[int] = (),
        snapshot: int | None = None,
    ) -> TextActivations:
        """The strongest features of every token of a text, and those of `features` at each."""
        path = f"/runs/{_segment(run_id)}/activations"
        body = {"text": text, "top": top, "features": list(features)}
        answer = self._send("POST", path, {"snapshot": snapshot}, body=body, wait=WARM_UP_SECONDS)
        return TextActivations.model_validate_json(answer.content)

    def steer(
        self,
        run_id: str,
        prompt: str,
        features: Mapping[int, float],
        *,
        max_new_tokens: int = 40,
        seed: int = 0,
        temperature: float = 1.0,
        snapshot: int | None = None,
    ) -> Generator[SteerPhase | SteerToken, None, SteerResult]:
        """How a prompt goes on, plain and steered, token by token; `features` maps features to
        strengths in units of their largest activations.

        The generator returns the whole result; closing it ends the work.
        """
        body = {
            "prompt": prompt,
            "features": [{"index": i, "strength": s} for i, s in features.items()],
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "temperature": temperature,
        }
        path = f"/runs/{_segment(run_id)}/steer"
        for event, data in self._events(path, {"snapshot": snapshot}, body):
            if event == "phase":
                yield SteerPhase.model_validate_json(data)
            elif event == "token":
                yield SteerToken.model_validate_json(data)
            elif event == "problem":
                raise ApiProblem(Problem.model_validate_json(data))
            elif event == "result":
                return SteerResult.model_validate_json(data)
        detail = "The server broke off in the middle of an answer; ask again."
        raise ApiProblem(Problem(type="about:blank", title="Broken off", status=502, detail=detail))

    def inference(self) -> InferenceStatus:
        """What the process that holds the language model is doing."""
        return self._read(InferenceStatus, "/inference")

    def densities(self, run_id: str, *, snapshot: int | None = None) -> DensityHistogram:
        """How many features fire how often."""
        query = {"snapshot": snapshot}
        return self._read(DensityHistogram, f"/runs/{_segment(run_id)}/densities", query)

    def feature_map(
        self, run_id: str, *, snapshot: int | None = None
    ) -> FeatureMap | AnalysisProgress:
        """A snapshot's features on a plane, or how far its computation is."""
        query = {"snapshot": snapshot}
        return self._read_computed(FeatureMap, f"/runs/{_segment(run_id)}/map", query)

    def compare(self, run_ids: Sequence[str], *, max_points: int | None = None) -> Comparison:
        """In what runs differ, and their curves."""
        query = {"runs": ",".join(run_ids), "max_points": max_points}
        return self._read(Comparison, "/compare", query)

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
        """Two runs' features matched by decoder rows, or how far the computation is."""
        query = {
            "runs": f"{run_a},{run_b}",
            "section": section,
            "threshold": threshold,
            "order": order,
            "limit": limit,
            "cursor": cursor,
        }
        return self._read_computed(FeatureComparison, "/compare/features", query)


def _sent(body: BaseModel) -> dict[str, Any]:
    return body.model_dump(mode="json", exclude_unset=True)


def _segment(text: str) -> str:
    return quote(text, safe="")
