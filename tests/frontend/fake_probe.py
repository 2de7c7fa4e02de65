"""The part of the fake API that reads and steers a person's own text.

A token is a word with the space before it; feature 10 fires on `import`, feature 3 on every word,
the longer the more.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from sae_engine.schema.playground import (
    ActivationsRequest,
    FeatureActivation,
    InferenceStatus,
    ReadToken,
    SteerPhase,
    SteerRequest,
    SteerResult,
    SteerToken,
    TextActivations,
    WatchedFeature,
)
from sae_engine.schema.problems import Problem
from tests.frontend.fake_world import NASTY, World

IMPORT, WORD = 10, 3
PHASE_SECONDS = 0.5


def add_probe(app: FastAPI, world: World) -> None:
    """Answers for every run; a text that begins with `refuse` is refused."""

    @app.post("/api/runs/{run_id}/activations", response_model=None)
    def activations(
        run_id: str, body: ActivationsRequest, snapshot: int = 0
    ) -> TextActivations | JSONResponse:
        if body.text.startswith("refuse"):
            problem = _problem("The text is no good; give another.")
            return JSONResponse(problem.model_dump(), 422)
        world.read.append(body)
        while world.phases:
            time.sleep(PHASE_SECONDS)
            world.phases.pop(0)
        tokens = [_token("<bos>"), *map(_token, re.findall(r"\s*\S+|\s+", body.text))]
        return TextActivations(
            tokens=tokens,
            features=[
                WatchedFeature(
                    index=index,
                    max_activation=8.0,
                    activations=[
                        next((f.activation for f in t.features if f.index == index), 0.0)
                        for t in tokens
                    ],
                )
                for index in body.features
            ],
            labels={WORD: f"any word {NASTY}"},
            snapshot=snapshot,
        )

    @app.post("/api/runs/{run_id}/steer")
    def steer(run_id: str, body: SteerRequest, snapshot: int = 0) -> StreamingResponse:
        world.steered.append(body)
        return StreamingResponse(_events(body, snapshot), media_type="text/event-stream")

    @app.get("/api/inference")
    def inference() -> InferenceStatus:
        phase = world.phases[0] if world.phases else None
        state = "warming-up" if phase else "ready"
        return InferenceStatus(state=state, phase=phase, waiting=0)


def _token(text: str) -> ReadToken:
    if text == "<bos>":
        return ReadToken(id=2, text=text, excluded="BOS", num_active=0, total=0.0, features=[])
    features = [FeatureActivation(index=WORD, activation=len(text) / 2)]
    if text.strip() == "import":
        features.insert(0, FeatureActivation(index=IMPORT, activation=7.5))
    total = sum(feature.activation for feature in features)
    return ReadToken(
        id=7, text=text, excluded=None, num_active=len(features), total=total, features=features
    )


def _events(body: SteerRequest, snapshot: int) -> Iterator[str]:
    yield _event("phase", SteerPhase(phase="loading the language model"))
    if body.prompt.startswith("refuse"):
        yield _event("problem", _problem("The prompt is no good; give another."))
        return
    yield ": still there\n\n"
    for number in range(2):
        yield _event("token", SteerToken(side="plain", text=f" plain{number}"))
        yield _event("token", SteerToken(side="steered", text=f" {NASTY}{number}"))
    if body.prompt.startswith("break"):
        return
    steered = f" {NASTY}0 {NASTY}1"
    yield _event("result", SteerResult(plain=" plain0 plain1", steered=steered, snapshot=snapshot))


def _event(name: str, body: BaseModel) -> str:
    return f"event: {name}\ndata: {body.model_dump_json()}\n\n"


def _problem(detail: str) -> Problem:
    return Problem(type="about:blank", title="Refused", status=422, detail=detail)
