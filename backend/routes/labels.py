"""Labels of features: who wrote them, and a language model that writes more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend import store
from backend.errors import ConflictError
from backend.http.indexes import open_index
from backend.http.services import Server
from backend.labels.jobs import LabelTask
from backend.labels.requests import (
    chat_client,
    estimate,
    features_to_label,
    job_shape,
    labeling_model,
)
from backend.store import label_jobs
from sae_engine.schema.labels import FeatureLabel, LabelEstimate, LabelJob, LabelRequest

router = APIRouter(prefix="/runs/{run_id}/labels", tags=["labels"])


@router.get("")
def list_labels(
    run_id: str,
    server: Server,
    feature: Annotated[
        list[int] | None, Query(max_length=500, description="Only these; unset is all.")
    ] = None,
) -> list[FeatureLabel]:
    """What is written about a run's features, by whom, and how well it detects."""
    with server.database.reading() as session:
        store.get_run(session, run_id)
        return list(store.written_labels(session, run_id, feature).values())


@router.post("", status_code=202)
def start_labeling(run_id: str, body: LabelRequest, server: Server) -> LabelJob:
    """Let the language model that is set propose labels and judge them, in the background."""
    model = labeling_model(server.settings)
    with server.database.reading() as session:
        index = open_index(server, session, run_id, body.snapshot)
        features = features_to_label(session, run_id, index, body)
    if not features:
        raise ConflictError(
            "There is no feature to label: those that were asked for never fire or have a label.",
            kind="nothing-to-label",
        )
    pid, pid_created = server.labeler.process()
    with server.database.writing() as session:
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
        concurrency=server.settings.labels_concurrency,
    )
    server.labeler.start(task, lambda: chat_client(server.settings))
    return job_shape(server.settings, row)


@router.post("/estimate")
def estimate_labeling(run_id: str, body: LabelRequest, server: Server) -> LabelEstimate:
    """What labeling would take, before anything is asked."""
    labeling_model(server.settings)
    with server.database.reading() as session:
        index = open_index(server, session, run_id, body.snapshot)
        features = features_to_label(session, run_id, index, body)
    return estimate(server.settings, index, features)


@router.get("/jobs")
def list_label_jobs(run_id: str, server: Server) -> list[LabelJob]:
    """The labelings of a run, the newest first."""
    with server.database.reading() as session:
        store.get_run(session, run_id)
        rows = label_jobs.label_jobs(session, run_id)
    if any(map(label_jobs.is_orphaned, rows)):
        with server.database.writing() as session:
            label_jobs.settle_label_jobs(session)
            rows = label_jobs.label_jobs(session, run_id)
    return [job_shape(server.settings, row) for row in rows]


@router.post("/cancel", status_code=202)
def cancel_labeling(run_id: str, server: Server) -> LabelJob:
    """End the labeling that is running; the labels it has made stay."""
    with server.database.writing() as session:
        store.get_run(session, run_id)
        label_jobs.settle_label_jobs(session)
        row = next(iter(label_jobs.label_jobs(session, run_id, limit=1)), None)
        if row is None or not label_jobs.end_label_job(session, row.id, "cancelled"):
            raise ConflictError("No features of this run are being labeled.", kind="not-labeling")
        session.refresh(row)
    server.labeler.cancel(row.id)
    return job_shape(server.settings, row)
