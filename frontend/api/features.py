"""Calls about a run's features: listed, looked into, looked up, tried on one's own text."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from frontend.api.connection import ApiProblem, Connection
from frontend.api.sending import segment
from sae_engine.schema.analysis import AnalysisProgress, DensityHistogram, FeatureMap
from sae_engine.schema.features import (
    FeatureDetail,
    FeatureHistory,
    FeaturePage,
    FeatureSort,
    FeatureState,
    SortOrder,
)
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch
from sae_engine.schema.playground import SteerPhase, SteerResult, SteerToken, TextActivations
from sae_engine.schema.problems import Problem

WARM_UP_SECONDS = 180.0
"""How long an answer may take that waits for the language model to be loaded."""


class FeatureCalls(Connection):
    """Features of a run's snapshots."""

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
        return self._read(FeaturePage, f"/runs/{segment(run_id)}/features", query)

    def feature(self, run_id: str, index: int, *, snapshot: int | None = None) -> FeatureDetail:
        """Everything a snapshot knows about one feature."""
        query = {"snapshot": snapshot}
        return self._read(FeatureDetail, f"/runs/{segment(run_id)}/features/{index}", query)

    def history(self, run_id: str, index: int) -> FeatureHistory:
        """What became of one feature over all snapshots."""
        return self._read(FeatureHistory, f"/runs/{segment(run_id)}/features/{index}/history")

    def label(self, run_id: str, index: int, update: LabelUpdate) -> None:
        """Set a feature's label, notes and star."""
        path = f"/runs/{segment(run_id)}/features/{index}/label"
        self._send("PUT", path, body=update.model_dump(mode="json"))

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
        return self._read(LookupResult, f"/runs/{segment(run_id)}/lookup", query)

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
        path = f"/runs/{segment(run_id)}/activations"
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
        path = f"/runs/{segment(run_id)}/steer"
        for event, data, _ in self._events("POST", path, {"snapshot": snapshot}, body):
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

    def densities(self, run_id: str, *, snapshot: int | None = None) -> DensityHistogram:
        """How many features fire how often."""
        query = {"snapshot": snapshot}
        return self._read(DensityHistogram, f"/runs/{segment(run_id)}/densities", query)

    def feature_map(
        self, run_id: str, *, snapshot: int | None = None
    ) -> FeatureMap | AnalysisProgress:
        """A snapshot's features on a plane, or how far its computation is."""
        query = {"snapshot": snapshot}
        return self._read_computed(FeatureMap, f"/runs/{segment(run_id)}/map", query)
