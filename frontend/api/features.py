"""Calls about a run's features: lists, details, lookups, activations on a text, steering."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TypedDict, Unpack

from frontend.api.connection import ApiProblem, Connection, run_path
from sae_engine.schema.analysis import AnalysisProgress, DensityHistogram, FeatureMap
from sae_engine.schema.features import (
    FeatureDetail,
    FeatureHistory,
    FeatureMark,
    FeaturePage,
    FeatureSort,
    FeatureState,
    SortOrder,
)
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch
from sae_engine.schema.playground import SteerPhase, SteerResult, SteerToken, TextActivations
from sae_engine.schema.problems import Problem

WARM_UP_SECONDS = 180.0
"""How long an answer may take that needs the language model, which may have to be loaded."""


class FeatureQuery(TypedDict, total=False):
    """Which features to list, and in which order."""

    snapshot: int | None
    sort: FeatureSort | None
    order: SortOrder | None
    min_density: float | None
    max_density: float | None
    state: FeatureState | None
    mark: FeatureMark | None
    q: str | None
    limit: int | None
    cursor: str | None


class LookupQuery(TypedDict, total=False):
    """How a text is matched, and how its features are ranked."""

    match: TokenMatch | None
    exact_case: bool | None
    rank: LookupRank | None
    min_count: int | None
    limit: int | None
    snapshot: int | None


class FeatureCalls(Connection):
    """Features of a run's snapshots; without a `snapshot` the latest one answers."""

    def features(self, run_id: str, **query: Unpack[FeatureQuery]) -> FeaturePage:
        """One page of a snapshot's features."""
        return self._call(FeaturePage, "GET", run_path(run_id, "features"), query)

    def feature(self, run_id: str, index: int, *, snapshot: int | None = None) -> FeatureDetail:
        """Everything a snapshot knows about one feature."""
        path = run_path(run_id, "features", index)
        return self._call(FeatureDetail, "GET", path, {"snapshot": snapshot})

    def history(self, run_id: str, index: int) -> FeatureHistory:
        """One feature in every snapshot."""
        return self._call(FeatureHistory, "GET", run_path(run_id, "features", index, "history"))

    def lookup(self, run_id: str, text: str, **query: Unpack[LookupQuery]) -> LookupResult:
        """The features that fire on a token, or on the occurrences of a text."""
        path = run_path(run_id, "lookup")
        return self._call(LookupResult, "GET", path, {"text": text, **query})

    def activations(
        self,
        run_id: str,
        text: str,
        *,
        top: int = 10,
        features: Sequence[int] = (),
        snapshot: int | None = None,
    ) -> TextActivations:
        """The `top` strongest features of every token of a text, and the activations of
        `features` at each.
        """
        return self._call(
            TextActivations,
            "POST",
            run_path(run_id, "activations"),
            {"snapshot": snapshot},
            body={"text": text, "top": top, "features": list(features)},
            seconds=WARM_UP_SECONDS,
        )

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
        """Continue a prompt, plain and steered, token by token; `features` maps features to
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
        path = run_path(run_id, "steer")
        for event in self._events("POST", path, {"snapshot": snapshot}, body=body):
            match event.event:
                case "phase":
                    yield SteerPhase.model_validate_json(event.data)
                case "token":
                    yield SteerToken.model_validate_json(event.data)
                case "problem":
                    raise ApiProblem(Problem.model_validate_json(event.data))
                case "result":
                    return SteerResult.model_validate_json(event.data)
                case _:
                    pass
        detail = "The server's answer was cut off; try again."
        raise ApiProblem(Problem(type="about:blank", title="Cut off", status=502, detail=detail))

    def densities(self, run_id: str, *, snapshot: int | None = None) -> DensityHistogram:
        """A histogram of the features' densities."""
        path = run_path(run_id, "densities")
        return self._call(DensityHistogram, "GET", path, {"snapshot": snapshot})

    def feature_map(
        self, run_id: str, *, snapshot: int | None = None
    ) -> FeatureMap | AnalysisProgress:
        """A snapshot's features on a plane, or the progress of the computation."""
        return self._call_computed(FeatureMap, run_path(run_id, "map"), {"snapshot": snapshot})
