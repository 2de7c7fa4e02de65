"""Labeling jobs: what they cost, how many requests they have open, and how they end."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.labels.chat import ChatClient
from backend.labels.jobs import FAILURES_IN_A_ROW, INTERNAL_ERROR, Labeler, LabelTask
from backend.processes import start_of
from backend.settings import Settings
from backend.store import label_jobs
from backend.store.database import Database
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.features.labels.examples import examples_of
from sae_engine.schema.labels import LabelEstimate, LabelJob
from tests.backend.conftest import URL, wait_for
from tests.backend.fake_endpoint import (
    KEY,
    MODEL,
    Endpoint,
    Reply,
    answer_by_rule,
    is_detection,
)
from tests.backend.fake_engine import fake_job
from tests.backend.labels.conftest import newest_job, some_features, start, wait_for_end


def test_the_estimate_has_the_number_of_calls_that_a_job_makes(
    settings: Settings, database: Database, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    priced = settings.model_copy(update={"labels_input_price": 2.0, "labels_output_price": 8.0})
    body = {"features": some_features(index, 5)}
    with TestClient(create_app(priced, command=fake_job), URL) as client:
        answer = client.post(f"/api/runs/{run_id}/labels/estimate", json=body)
        asked = LabelEstimate.model_validate_json(answer.content)
        assert served.asked == []
        start(client, run_id, **body)
        job = wait_for_end(client, run_id)
    assert (asked.model, asked.features, asked.calls) == (MODEL, 5, job.calls)
    characters = sum(len(m["content"]) for body in served.asked for m in body["messages"])
    assert asked.prompt_tokens == pytest.approx(characters / 3, rel=0.1)
    paid = asked.prompt_tokens * 2.0 + asked.completion_tokens * 8.0
    assert asked.cost == pytest.approx(paid / 1e6)
    assert job.cost == pytest.approx((job.prompt_tokens * 2.0 + job.completion_tokens * 8.0) / 1e6)


def test_without_prices_there_is_no_cost(
    client: TestClient, run_id: str, index: FeatureIndex
) -> None:
    body = {"features": some_features(index, 2)}
    assert client.post(f"/api/runs/{run_id}/labels/estimate", json=body).json()["cost"] is None


@pytest.mark.both_databases
def test_a_job_can_be_cancelled_and_another_started(
    client: TestClient, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    features = some_features(index, 8)
    served.gate.clear()
    start(client, run_id, features=features)
    wait_for(lambda: len(served.asked) == 3)
    second = client.post(f"/api/runs/{run_id}/labels", json={"features": features})
    assert (second.status_code, second.json()["type"]) == (409, "urn:sae-workbench:labeling")
    cancelled = client.post(f"/api/runs/{run_id}/labels/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    again = client.post(f"/api/runs/{run_id}/labels/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "urn:sae-workbench:not-labeling")
    served.gate.set()
    start(client, run_id, features=features)
    assert wait_for_end(client, run_id).labeled == 8
    jobs = client.get(f"/api/runs/{run_id}/labels/jobs").json()
    assert [job["status"] for job in jobs] == ["finished", "cancelled"]
    assert jobs[1]["labeled"] == 0


def test_no_more_requests_are_open_than_the_setting_allows(
    client: TestClient, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    served.gate.clear()
    start(client, run_id, features=some_features(index, 9))
    wait_for(lambda: len(served.asked) == 3)
    served.gate.set()
    wait_for_end(client, run_id)
    assert served.most_at_once == 3


def test_an_unusable_answer_fails_its_feature_alone(
    client: TestClient, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    features = some_features(index, 4)
    marked = _marked_token(index, features[1])
    garbage = "I'd rather\nnot <b>say</b>."

    def reply(body: dict[str, Any]) -> str:
        asked = body["messages"][1]["content"]
        if not is_detection(body) and f"«{marked}»" in asked.splitlines()[1]:
            return garbage
        return answer_by_rule(body)

    served.reply = reply
    start(client, run_id, features=features)
    job = wait_for_end(client, run_id)
    assert job.status == "finished"
    assert job.failed >= 1
    assert job.labeled == 4 - job.failed
    assert job.problem is not None
    assert "the model gave an unusable answer: \"I'd rather" in job.problem
    assert features[1] not in [
        row["feature"] for row in client.get(f"/api/runs/{run_id}/labels").json()
    ]


def _marked_token(index: FeatureIndex, feature: int) -> str:
    """The first token marked in the strongest example."""
    context = examples_of(index, feature).shown[0]
    place = next(n for n, act in enumerate(context.activations) if act > 0)
    return context.tokens[place]


def test_a_refused_key_ends_the_job_at_once(
    client: TestClient, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    served.reply = lambda _: Reply(401, '{"error": {"message": "bad key"}}')
    start(client, run_id, features=some_features(index, 30))
    job = wait_for_end(client, run_id)
    assert (job.status, job.labeled) == ("failed", 0)
    assert job.problem is not None
    assert "answered 401: bad key" in job.problem
    assert KEY not in job.problem
    assert len(served.asked) <= 3


def run_job(
    database: Database, served: Endpoint, run_id: str, index: FeatureIndex, features: list[int]
) -> LabelJob:
    """A job from start to end."""
    labeler = Labeler(database)
    pid, pid_created = labeler.process()
    with database.writing() as session:
        row = label_jobs.add_label_job(
            session,
            run_id,
            snapshot=7,
            model=MODEL,
            total=len(features),
            pid=pid,
            pid_created=pid_created,
        )
    task = LabelTask(row.id, run_id, index, features, MODEL, concurrency=2)
    labeler.start(task, lambda: ChatClient(served.url, MODEL, KEY))

    def stored() -> Any:
        with database.reading() as session:
            return label_jobs.label_jobs(session, run_id)[0]

    wait_for(lambda: stored().status != "running")
    labeler.close()
    row = stored()
    fields = {name: getattr(row, name) for name in LabelJob.model_fields if name != "cost"}
    return LabelJob.model_validate(fields | {"cost": None})


def test_transient_errors_cost_no_labels(
    database: Database, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    troubles = [Reply(429), Reply(500), Reply(200, "garbage"), Reply(503)]
    times_asked: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Reply | str:
        """Fail every question in all four ways before answering it."""
        question = body["messages"][1]["content"]
        times_asked[question] += 1
        tried = times_asked[question] - 1
        return troubles[tried] if tried < len(troubles) else answer_by_rule(body)

    served.reply = reply
    job = run_job(database, served, run_id, index, some_features(index, 8))
    assert set(times_asked.values()) == {5}
    assert (job.status, job.labeled, job.failed) == ("finished", 8, 0)


def test_a_permanently_failing_endpoint_ends_the_job(
    database: Database, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    served.reply = lambda body: Reply(500, "out of memory")
    job = run_job(database, served, run_id, index, some_features(index, 40))
    assert (job.status, job.labeled) == ("failed", 0)
    assert job.failed == FAILURES_IN_A_ROW - 1
    assert job.problem is not None
    assert "answered 500: out of memory" in job.problem


@pytest.mark.both_databases
def test_a_job_whose_server_is_gone_is_interrupted(
    client: TestClient, database: Database, run_id: str
) -> None:
    gone, same_boot = 2**22 - 1, start_of(os.getpid())
    with database.writing() as session:
        label_jobs.add_label_job(
            session, run_id, snapshot=7, model=MODEL, total=5, pid=gone, pid_created=same_boot
        )
    job = newest_job(client, run_id)
    assert (job.status, job.problem) == ("interrupted", "The server that did it has ended.")
    assert job.ended_at is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("url", ["http://localhost:abc/v1", "http://300.1.1.1/v1"])
def test_a_job_whose_client_cannot_be_made_fails(
    client: TestClient, database: Database, run_id: str, index: FeatureIndex, url: str
) -> None:
    def broken() -> ChatClient:
        return ChatClient(url, MODEL, None)

    labeler = Labeler(database)
    pid, created = labeler.process()
    with database.writing() as session:
        job_id = label_jobs.add_label_job(
            session, run_id, snapshot=7, model=MODEL, total=1, pid=pid, pid_created=created
        ).id
    labeler.start(LabelTask(job_id, run_id, index, [0], MODEL, 1), broken)
    job = wait_for_end(client, run_id)
    assert (job.status, job.problem) == ("failed", INTERNAL_ERROR)
    labeler.close()


def test_a_closing_server_interrupts_its_jobs(
    settings: Settings, database: Database, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    served.gate.clear()
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        start(client, run_id, features=some_features(index, 4))
        wait_for(lambda: len(served.asked) == 3)
    with database.reading() as session:
        (row,) = label_jobs.label_jobs(session, run_id)
    assert (row.status, row.labeled) == ("interrupted", 0)


@pytest.mark.both_databases
def test_deleting_a_run_ends_its_job(
    client: TestClient, database: Database, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    served.gate.clear()
    start(client, run_id, features=some_features(index, 4))
    wait_for(lambda: len(served.asked) == 3)
    assert client.delete(f"/api/runs/{run_id}").status_code == 204
    served.gate.set()
    wait_for(lambda: served.asked[-1] is not None and not _labeling_threads())
    with database.reading() as session:
        assert label_jobs.label_jobs(session, run_id) == []
        assert store.written_labels(session, run_id) == {}


def _labeling_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("labels-")]


def test_without_an_endpoint_the_settings_are_named(
    tmp_path: Path, database: Database, settings: Settings, run_id: str
) -> None:
    plain = Settings(data_dir=settings.data_dir, database_url=settings.database_url)
    with TestClient(create_app(plain, command=fake_job), URL) as client:
        for path in ("labels", "labels/estimate"):
            answer = client.post(f"/api/runs/{run_id}/{path}", json={})
            assert answer.status_code == 409
            assert answer.json()["type"] == "urn:sae-workbench:labels-not-configured"
            assert "SAE_WORKBENCH_LABELS_BASE_URL" in answer.json()["detail"]


def test_training_jobs_do_not_get_the_endpoints_key(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_LABELS_API_KEY", KEY)
    assert KEY not in settings.environment().values()
    assert KEY not in repr(settings)
