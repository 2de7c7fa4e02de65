"""The fake API's labels, and a labeling that goes on until it is cancelled."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, Response

from sae_engine.schema.labels import (
    DetectionScore,
    FeatureLabel,
    LabelEstimate,
    LabelJob,
    LabelOrigin,
    LabelRequest,
)
from sae_engine.schema.problems import Problem
from tests.frontend.fake_world import World

MODEL = "fake <b>model</b>"
BY_PERSON = LabelOrigin(
    author="person", model=None, prompt_version=None, created_at=None, score=None
)
BY_MODEL = LabelOrigin(
    author="model",
    model=MODEL,
    prompt_version="1",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    score=DetectionScore(
        precision=0.9, recall=0.75, balanced_accuracy=0.8, activating=20, silent=19
    ),
)


def label_job(**changes: object) -> LabelJob:
    """A labeling that is running, with changes."""
    fields: dict[str, object] = {
        "id": 1,
        "status": "running",
        "model": MODEL,
        "snapshot": 100,
        "total": 40,
        "labeled": 10,
        "kept": 0,
        "failed": 0,
        "calls": 50,
        "prompt_tokens": 30_000,
        "completion_tokens": 2_000,
        "cost": None,
        "problem": None,
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "ended_at": None,
    }
    return LabelJob.model_validate(fields | changes)


def add_labels(app: FastAPI, world: World) -> None:
    @app.get("/api/runs/{run_id}/labels")
    def labels(
        run_id: str, feature: Annotated[list[int] | None, Query()] = None
    ) -> list[FeatureLabel]:
        return [
            FeatureLabel(
                feature=index,
                **written.model_dump(),
                origin=world.origins.get(index, BY_PERSON),
            )
            for index, written in world.labels.items()
            if feature is None or index in feature
        ]

    @app.post("/api/runs/{run_id}/labels/estimate", response_model=None)
    def estimate(run_id: str, body: LabelRequest) -> LabelEstimate | Response:
        if not world.can_label:
            problem = Problem(
                type="about:blank", title="Conflict", status=409, detail="<b>No model</b> is set."
            )
            return JSONResponse(problem.model_dump(), 409)
        return LabelEstimate(
            model=MODEL,
            features=body.limit,
            calls=5 * body.limit,
            prompt_tokens=4000 * body.limit,
            completion_tokens=200 * body.limit,
            cost=0.5,
        )

    @app.post("/api/runs/{run_id}/labels", status_code=202)
    def start(run_id: str, body: LabelRequest) -> LabelJob:
        world.label_jobs.insert(0, label_job(total=body.limit))
        return world.label_jobs[0]

    @app.get("/api/runs/{run_id}/labels/jobs")
    def jobs(run_id: str) -> list[LabelJob]:
        return world.label_jobs

    @app.post("/api/runs/{run_id}/labels/cancel", status_code=202)
    def cancel(run_id: str) -> LabelJob:
        world.label_jobs[0] = label_job(status="cancelled")
        return world.label_jobs[0]
