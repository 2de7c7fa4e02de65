"""A person's own text: its features, and how it goes on when they are steered."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from backend import store
from backend.errors import ApiError, ConflictError, FailedError, UnprocessableError
from backend.http.indexes import open_index
from backend.http.problems import problem_shape
from backend.http.services import Server, Services
from backend.playground.client import Part, Phase
from backend.playground.protocol import ReadTask, SteerTask
from backend.routes.features import SnapshotStep
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
"""How long a program waits for the language model to be loaded before it is told to ask again."""
EVENT_STREAM = "text/event-stream"

router = APIRouter(tags=["probe"])
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    config: RunConfig
    index: FeatureIndex
    labels: Mapping[int, str]


@router.post("/runs/{run_id}/activations")
def read_text(
    run_id: str, body: ActivationsRequest, server: Server, snapshot: SnapshotStep = None
) -> TextActivations:
    """The features of every token of a text. Waits while the language model is loaded."""
    run = _prepare(server, run_id, snapshot)
    _check_features(body.features, run.index)
    task = ReadTask(
        model=run.config.model,
        sae=run.index.folder / SAE,
        text=body.text,
        ctx_len=run.config.data.ctx_len,
        top=body.top,
        features=body.features,
    )
    answer = server.language_model.ask(task, patience_seconds=PATIENCE_SECONDS)
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
        snapshot=run.index.step,
    )


@router.post(
    "/runs/{run_id}/steer",
    response_model=SteerResult,
    responses={200: {"content": {EVENT_STREAM: {}}}},
)
def steer(
    run_id: str,
    body: SteerRequest,
    server: Server,
    request: Request,
    snapshot: SnapshotStep = None,
) -> SteerResult | StreamingResponse:
    """How a prompt goes on, plain and with features added to the activations. With `Accept:
    text/event-stream` it comes token by token: events `phase`, `token`, and at the end `result` or
    `problem`.
    """
    run = _prepare(server, run_id, snapshot)
    indices = [feature.index for feature in body.features]
    _check_features(indices, run.index)
    activations = dict.fromkeys(indices, 0.0)
    largest = run.index.max_activations(indices)
    for feature, most in zip(body.features, largest, strict=True):
        if most == 0:
            raise UnprocessableError(
                f"Feature {feature.index} never fired in this snapshot, so there is no largest "
                "activation to measure its strength by; choose another.",
                kind="invalid",
                field="features",
            )
        activations[feature.index] += feature.strength * most
    task = SteerTask(
        model=run.config.model,
        sae=run.index.folder / SAE,
        prompt=body.prompt,
        activations=activations,
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
        seed=body.seed,
    )
    if EVENT_STREAM in request.headers.get("accept", ""):
        events = _events(server.language_model.ask(task), run.index.step)
        return StreamingResponse(
            _closing(events), media_type=EVENT_STREAM, headers={"Cache-Control": "no-store"}
        )
    answer = server.language_model.ask(task, patience_seconds=PATIENCE_SECONDS)
    return _result([part for part in answer if isinstance(part, SteerToken)], run.index.step)


@router.get("/inference")
def inference_status(server: Server) -> InferenceStatus:
    """What the process that holds the language model is doing."""
    return server.language_model.status()


def _prepare(server: Services, run_id: str, snapshot: int | None) -> _Prepared:
    """Raises `ConflictError` for a run whose activations no language model here gives."""
    with server.database.reading() as session:
        row = store.get_run(session, run_id)
        config = store.config_of(row)
        if config.data.activations is not None:
            raise ConflictError(
                f"The run '{row.name}' was trained on activation files, not on a language model "
                "that reads text, so it cannot read new text.",
                kind="no-language-model",
            )
        index = open_index(server, session, run_id, snapshot)
        return _Prepared(config, index, store.labels(session, run_id))


def _check_features(indices: list[int], index: FeatureIndex) -> None:
    for feature in indices:
        if feature >= index.d_sae:
            raise UnprocessableError(
                f"There is no feature {feature}; this SAE has features 0 to {index.d_sae - 1}.",
                kind="invalid",
                field="features",
            )


def _result(tokens: list[SteerToken], snapshot: int) -> SteerResult:
    plain, steered = (
        "".join(token.text for token in tokens if token.side == side)
        for side in ("plain", "steered")
    )
    return SteerResult(plain=plain, steered=steered, snapshot=snapshot)


def _events(answer: Generator[Phase | Part], snapshot: int) -> Generator[str]:
    """An answer as server-sent events."""
    tokens: list[SteerToken] = []
    phase = ""
    try:
        for part in answer:
            if isinstance(part, Phase) and part.text == phase:
                yield ": still there\n\n"  # fails when nobody listens any more
            elif isinstance(part, Phase):
                phase = part.text
                yield _event("phase", SteerPhase(phase=phase))
            elif isinstance(part, SteerToken):
                tokens.append(part)
                yield _event("token", part)
        yield _event("result", _result(tokens, snapshot))
    except ApiError as error:
        yield _event("problem", problem_shape(error))
    except Exception:
        _log.exception("steering failed")
        error = FailedError("The server made a mistake; its log has the details.", kind="internal")
        yield _event("problem", problem_shape(error))
    finally:
        answer.close()


def _event(name: str, body: BaseModel) -> str:
    return f"event: {name}\ndata: {body.model_dump_json()}\n\n"


async def _closing(events: Generator[str]) -> AsyncGenerator[str]:
    """The same events; when nobody listens any more, the question is taken back."""
    try:
        while (event := await run_in_threadpool(next, events, None)) is not None:
            yield event
    finally:
        events.close()
