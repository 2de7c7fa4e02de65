"""A person's own text: its features, and its continuation while features are steered."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from backend import store
from backend.errors import ApiError, ConflictError, UnprocessableError
from backend.http.indexes import open_index
from backend.http.parameters import SnapshotStep, check_body_features
from backend.http.problems import problem_shape, unexpected_error
from backend.http.services import Services, ServicesDep
from backend.http.sse import EVENT_STREAM, EventStream, comment_text, event_text
from backend.playground.protocol import Part, ReadTask, SteerTask
from sae_engine.features.index.format import SAE
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.config import RunConfig
from sae_engine.schema.playground import (
    ActivationsRequest,
    InferenceStatus,
    SteerPhase,
    SteerRequest,
    SteerResult,
    SteerToken,
    TextActivations,
    TextReading,
    WatchedFeature,
)

PATIENCE_SECONDS = 120.0
"""How long a request without streaming waits for the language model before it gets a 503."""

router = APIRouter(tags=["probe"])
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ReadableRun:
    config: RunConfig
    index: FeatureIndex
    model_file: Path
    labels: Mapping[int, str]
    stars: frozenset[int]


def _readable_run(
    run_id: str, services: ServicesDep, snapshot: SnapshotStep = None
) -> _ReadableRun:
    """The run and snapshot of a request; raises `ConflictError` for one that cannot read text."""
    with services.database.reading() as session:
        row = store.get_run(session, run_id)
        config = store.config_of(row)
        if config.data.activations is not None:
            raise ConflictError(
                f"The run '{row.name}' was trained on activation files, not on a language model, "
                "so it cannot read text.",
                kind="no-language-model",
            )
        index = open_index(services, session, run_id, snapshot)
        marks = store.labels(session, run_id), store.stars(session, run_id)
        return _ReadableRun(config, index, services.settings.run_folder(run_id).model, *marks)


_RunDep = Annotated[_ReadableRun, Depends(_readable_run)]


@router.post("/runs/{run_id}/activations")
def read_text(body: ActivationsRequest, run: _RunDep, services: ServicesDep) -> TextActivations:
    """The features of every token of a text; waits while the language model is loaded."""
    check_body_features(body.features, run.index.d_sae)
    task = ReadTask(
        model=run.config.model,
        sae=run.index.folder / SAE,
        model_file=run.model_file,
        vocab_size=run.index.manifest.vocab_size,
        largest_norm=run.index.manifest.largest_norm,
        text=body.text,
        ctx_len=run.config.data.ctx_len,
        top=body.top,
        features=body.features,
    )
    answer = services.playground.ask(task, patience_seconds=PATIENCE_SECONDS)
    [reading] = [part for part in answer if isinstance(part, TextReading)]
    largest = run.index.max_activations(body.features)
    shown = {feature.index for token in reading.tokens for feature in token.features}
    shown.update(body.features)
    return TextActivations(
        tokens=reading.tokens,
        features=[
            WatchedFeature(index=index, max_activation=most, activations=activations)
            for index, most, activations in zip(
                body.features, largest, reading.activations, strict=True
            )
        ],
        labels={index: label for index, label in run.labels.items() if index in shown},
        starred=sorted(run.stars & shown),
        snapshot=run.index.step,
    )


@router.post(
    "/runs/{run_id}/steer",
    response_model=SteerResult,
    responses={200: {"content": {EVENT_STREAM: {}}}},
)
def steer(
    body: SteerRequest, run: _RunDep, services: ServicesDep, request: Request
) -> SteerResult | StreamingResponse:
    """Continue a prompt, plain and with features added to the activations.

    With `Accept: text/event-stream` the answer comes token by token: events `phase` and `token`,
    and at the end `result` or `problem`.
    """
    indices = [feature.index for feature in body.features]
    check_body_features(indices, run.index.d_sae)
    activations = dict.fromkeys(indices, 0.0)
    largest = run.index.max_activations(indices)
    for feature, most in zip(body.features, largest, strict=True):
        if most == 0:
            raise UnprocessableError(
                f"Feature {feature.index} never fired in this snapshot, so there is no largest "
                "activation to scale its strength by; choose another.",
                kind="invalid",
                field="features",
            )
        activations[feature.index] += feature.strength * most
    task = SteerTask(
        model=run.config.model,
        sae=run.index.folder / SAE,
        model_file=run.model_file,
        vocab_size=run.index.manifest.vocab_size,
        largest_norm=run.index.manifest.largest_norm,
        prompt=body.prompt,
        activations=activations,
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
        seed=body.seed,
    )
    if EVENT_STREAM in request.headers.get("accept", ""):
        events = _events(services.playground.ask(task), run.index.step)
        return EventStream(_closing(events, services))
    answer = services.playground.ask(task, patience_seconds=PATIENCE_SECONDS)
    return _result([part for part in answer if isinstance(part, SteerToken)], run.index.step)


@router.get("/inference")
def inference_status(services: ServicesDep) -> InferenceStatus:
    """What the language-model process is doing."""
    return services.playground.status()


def _result(tokens: list[SteerToken], snapshot: int) -> SteerResult:
    plain, steered = (
        "".join(token.text for token in tokens if token.side == side)
        for side in ("plain", "steered")
    )
    return SteerResult(plain=plain, steered=steered, snapshot=snapshot)


def _events(answer: Generator[SteerPhase | Part], snapshot: int) -> Generator[str]:
    """An answer as server-sent events."""
    tokens: list[SteerToken] = []
    phase = None
    try:
        for part in answer:
            if isinstance(part, SteerToken):
                tokens.append(part)
                yield event_text("token", part)
            elif isinstance(part, SteerPhase) and part != phase:
                phase = part
                yield event_text("phase", part)
            else:
                yield comment_text("waiting")  # fails once the client has left
        yield event_text("result", _result(tokens, snapshot))
    except ApiError as error:
        yield event_text("problem", problem_shape(error))
    except Exception:
        _log.exception("steering failed")
        yield event_text("problem", problem_shape(unexpected_error()))
    finally:
        answer.close()


async def _closing(events: Generator[str], services: Services) -> AsyncGenerator[str]:
    """The same events; cancels the question when the client has left or the server ends."""
    try:
        while (event := await run_in_threadpool(next, events, None)) is not None:
            yield event
            if services.is_closing:
                return
    finally:
        events.close()
