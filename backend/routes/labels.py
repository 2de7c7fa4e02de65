"""A run's labels and their authors, and jobs that let a language model write more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from backend import store
from backend.errors import ConflictError
from backend.http.indexes import open_index
from backend.http.parameters import MAX_INTEGER, check_body_features
from backend.http.services import Services, ServicesDep
from backend.labels.jobs import LabelTask
from backend.labels.requests import (
    chat_client,
    estimate,
    features_to_label,
    job_shape,
    labeling_model,
)
from backend.store import label_jobs
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.labels import (
    FeatureLabel,
    LabelEstimate,
    LabelJob,
    LabelPatch,
    LabelRequest,
)

router = APIRouter(prefix="/runs/{run_id}/labels", tags=["labels"])


@router.get("")
def list_labels(
    run_id: str,
    services: ServicesDep,
    feature: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_INTEGER)]] | None,
        Query(max_length=500, description="Only these features; unset means all."),
    ] = None,
) -> list[FeatureLabel]:
    """The labels and notes of a run's features, with their authors and detection scores."""
    with services.database.reading() as session:
        store.get_run(session, run_id)
        return list(store.written_labels(session, run_id, feature).values())


@router.patch("")
def patch_labels(run_id: str, body: LabelPatch, services: ServicesDep) -> list[FeatureLabel]:
    """Give several features the same label, notes or star, or take theirs away."""
    with services.database.reading() as session:
        index = open_index(services, session, run_id, None)
    check_body_features(body.features, index.d_sae)
    with services.database.writing() as session:
        store.patch_labels(session, run_id, body)
        return list(store.written_labels(session, run_id, body.features).values())


@router.post("", status_code=202)
def start_labeling(run_id: str, body: LabelRequest, services: ServicesDep) -> LabelJob:
    """Start a job in which the configured language model labels features and scores its labels."""
    model = labeling_model(services.settings)
    index, features = _chosen(run_id, body, services)
    if not features:
        raise ConflictError(
            "There is nothing to label: the features of this request never fire or are labeled "
            "already.",
            kind="nothing-to-label",
        )
    pid, pid_created = services.labeler.process()
    with services.database.writing() as session:
        row = label_jobs.add_label_job(
            session,
            run_id,
            snapshot=index.step,
            model=model,
            total=len(features),
            pid=pid,
            pid_created=pid_created,
        )
    task = LabelTask(
        job_id=row.id,
        run_id=run_id,
        index=index,
        features=features,
        model=model,
        concurrency=services.settings.labels_concurrency,
    )
    services.labeler.start(task, lambda: chat_client(services.settings))
    return job_shape(services.settings, row)


@router.post("/estimate")
def estimate_labeling(run_id: str, body: LabelRequest, services: ServicesDep) -> LabelEstimate:
    """The calls, tokens and cost of a labeling job, without calling the language model."""
    labeling_model(services.settings)
    index, features = _chosen(run_id, body, services)
    return estimate(services.settings, index, features)


def _chosen(run_id: str, body: LabelRequest, services: Services) -> tuple[FeatureIndex, list[int]]:
    """The index and the features that a request names, without those that may not be labeled."""
    with services.database.reading() as session:
        index = open_index(services, session, run_id, body.snapshot)
        check_body_features(body.features or (), index.d_sae)
        return index, features_to_label(session, run_id, index, body)


@router.get("/jobs")
def list_label_jobs(run_id: str, services: ServicesDep) -> list[LabelJob]:
    """A run's labeling jobs, newest first."""
    with services.database.reading() as session:
        store.get_run(session, run_id)
        rows = label_jobs.label_jobs(session, run_id)
    if any(map(label_jobs.is_orphaned, rows)):
        with services.database.writing() as session:
            label_jobs.settle_label_jobs(session)
            rows = label_jobs.label_jobs(session, run_id)
    return [job_shape(services.settings, row) for row in rows]


@router.post("/cancel", status_code=202)
def cancel_labeling(run_id: str, services: ServicesDep) -> LabelJob:
    """Cancel a run's labeling job; labels that it has written are kept."""
    with services.database.writing() as session:
        store.get_run(session, run_id)
        label_jobs.settle_label_jobs(session)
        row = next(iter(label_jobs.label_jobs(session, run_id, limit=1)), None)
        if row is None or not label_jobs.end_label_job(session, row.id, "cancelled"):
            raise ConflictError("This run has no running labeling job.", kind="not-labeling")
        session.refresh(row)
    services.labeler.cancel(row.id)
    return job_shape(services.settings, row)
