"""A language model labels features and is scored; it never overwrites a person's label."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.labels.chat import ChatClient
from backend.labels.jobs import FAILURES_IN_A_ROW, Labeler, LabelTask
from backend.processes import start_of
from backend.settings import Settings
from backend.store import label_jobs
from backend.store.database import Database
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.features.labels.examples import examples_of
from sae_engine.features.labels.questions import PROMPT_VERSION, detection_score
from sae_engine.presets import resolve_config
from sae_engine.schema.labels import FeatureLabel, LabelEstimate, LabelJob, LabelUpdate
from sae_engine.schema.records import SnapshotRecord
from tests.backend.conftest import URL, wait_for
from tests.backend.fake_endpoint import (
    KEY,
    MODEL,
    Endpoint,
    Reply,
    answer_by_rule,
    endpoint,
    is_detection,
)
from tests.backend.fake_engine import fake_job
from tests.sae_engine.features.index_reference import build, random_case


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as state:
        yield state


@pytest.fixture
def settings(tmp_path: Path, served: Endpoint, database_url: str | None) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        labels_base_url=served.url,
        labels_model=MODEL,
        labels_api_key=SecretStr(KEY),
        labels_concurrency=3,
    )


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = random_case(3, num_tokens=6000, k=2, d_sae=300, ids=range(60, 250), num_rows=40)
    return build(tmp_path_factory.mktemp("index"), case, step=7)


@pytest.fixture
def run_id(settings: Settings, database: Database, index_folder: Path) -> str:
    with database.writing() as session:
        config = resolve_config("quick-test", {"name": "indexed"})
        run_id = store.add_run(session, config=config, status="finished").id
        record = SnapshotRecord(step=7, tokens=1000, index_tokens=6000, seconds=0.1, final=True)
        store.add_snapshot(session, run_id, record)
    folder = settings.run_folder(run_id)
    folder.features.mkdir(parents=True)
    folder.feature_index(7).symlink_to(index_folder)
    return run_id


@pytest.fixture
def index(index_folder: Path) -> FeatureIndex:
    return FeatureIndex.open(index_folder)


def some_features(index: FeatureIndex, number: int) -> list[int]:
    """Features that fire often enough for a score."""
    page = index.features(sort="density", limit=120 + number)
    return [row.index for row in page.items[120:]]


def start(client: TestClient, run_id: str, **body: Any) -> LabelJob:
    answer = client.post(f"/api/runs/{run_id}/labels", json=body)
    assert answer.status_code == 202, answer.text
    return LabelJob.model_validate_json(answer.content)


def newest_job(client: TestClient, run_id: str) -> LabelJob:
    return LabelJob.model_validate(client.get(f"/api/runs/{run_id}/labels/jobs").json()[0])


def wait_for_end(client: TestClient, run_id: str) -> LabelJob:
    wait_for(lambda: newest_job(client, run_id).status != "running")
    return newest_job(client, run_id)


def label(client: TestClient, run_id: str, feature: int) -> FeatureLabel:
    (written,) = client.get(f"/api/runs/{run_id}/labels", params={"feature": feature}).json()
    return FeatureLabel.model_validate(written)


def put(client: TestClient, run_id: str, feature: int, text: str, **more: Any) -> None:
    path = f"/api/runs/{run_id}/features/{feature}/label"
    assert client.put(path, json={"label": text, **more}).status_code == 200


@pytest.mark.both_databases
def test_a_label_is_scored_on_contexts_that_were_not_in_its_prompt(
    client: TestClient, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    features = some_features(index, 6)
    job = start(client, run_id, features=features)
    assert (job.status, job.total, job.model, job.snapshot) == ("running", 6, MODEL, 7)
    job = wait_for_end(client, run_id)
    assert (job.status, job.labeled, job.failed, job.problem) == ("finished", 6, 0, None)
    assert (job.calls, job.prompt_tokens) == (len(served.asked), 100 * len(served.asked))
    assert {headers["Authorization"] for headers in served.headers} == {f"Bearer {KEY}"}
    for feature in features:
        written = label(client, run_id, feature)
        origin = written.origin
        assert (origin.author, origin.model) == ("model", MODEL)
        assert origin.prompt_version == PROMPT_VERSION
        assert origin.created_at is not None
        examples = examples_of(index, feature)
        held_out = [*examples.held_out, *examples.held_out_silent]
        texts = ["".join(context.tokens).replace("\n", "↵").strip() for context in held_out]
        wanted = written.label.strip("|")
        truths = [True] * len(examples.held_out) + [False] * len(examples.held_out_silent)
        assert origin.score == detection_score(truths, [wanted in text for text in texts])
        assert origin.score is not None


def test_a_models_label_appears_in_lists_and_details(
    client: TestClient, run_id: str, index: FeatureIndex
) -> None:
    (feature,) = some_features(index, 1)
    start(client, run_id, features=[feature])
    wait_for_end(client, run_id)
    text = label(client, run_id, feature).label
    assert client.get(f"/api/runs/{run_id}/features/{feature}").json()["label"] == text
    found = client.get(f"/api/runs/{run_id}/features", params={"q": text}).json()["items"]
    assert feature in [row["index"] for row in found]


@pytest.mark.both_databases
def test_a_label_that_a_person_writes_during_a_job_is_kept(
    client: TestClient, served: Endpoint, run_id: str, index: FeatureIndex
) -> None:
    first, second = some_features(index, 2)
    served.gate.clear()
    start(client, run_id, features=[first, second])
    wait_for(lambda: len(served.asked) == 2)
    put(client, run_id, first, "mine")
    put(client, run_id, second, "", starred=True, notes="look here")
    served.gate.set()
    job = wait_for_end(client, run_id)
    assert (job.labeled, job.kept) == (1, 1)
    kept = label(client, run_id, first)
    assert (kept.label, kept.origin.author, kept.origin.score) == ("mine", "person", None)
    other = label(client, run_id, second)
    assert (other.origin.author, other.starred, other.notes) == ("model", True, "look here")


@pytest.mark.both_databases
def test_editing_a_models_label_makes_it_a_persons_and_starring_does_not(
    client: TestClient, run_id: str, index: FeatureIndex
) -> None:
    first, second = some_features(index, 2)
    start(client, run_id, features=[first, second])
    wait_for_end(client, run_id)
    proposed = label(client, run_id, first)
    put(client, run_id, first, proposed.label, starred=True)
    starred = label(client, run_id, first)
    assert (starred.starred, starred.origin) == (True, proposed.origin)
    put(client, run_id, second, "better")
    edited = label(client, run_id, second).origin
    assert (edited.author, edited.model, edited.score) == ("person", None, None)
    start(client, run_id, features=[first, second], relabel=True)
    job = wait_for_end(client, run_id)
    assert (job.total, job.labeled) == (1, 1)
    assert label(client, run_id, second).label == "better"


@pytest.mark.both_databases
def test_several_features_are_labeled_and_starred_at_once(
    client: TestClient, run_id: str, index: FeatureIndex
) -> None:
    first, second, third = some_features(index, 3)
    put(client, run_id, first, "mine", notes="look here")
    path = f"/api/runs/{run_id}/labels"
    body = {"features": [first, second, first], "starred": True}
    changed = client.patch(path, json=body).json()
    assert [(w["feature"], w["label"], w["notes"], w["starred"]) for w in changed] == sorted(
        [(first, "mine", "look here", True), (second, "", "", True)]
    )
    client.patch(path, json={"features": [second, third], "label": "both"})
    assert label(client, run_id, second).starred
    for mark, wanted in (("starred", {first, second}), ("labeled", {first, second, third})):
        listed = client.get(f"/api/runs/{run_id}/features", params={"mark": mark}).json()["items"]
        assert {row["index"] for row in listed} == wanted
    client.patch(path, json={"features": [first], "label": "", "starred": False})
    kept = label(client, run_id, first)
    assert (kept.label, kept.starred, kept.notes) == ("", False, "look here")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"features": [300]}, "features"),
        ({"features": []}, "features"),
        ({"features": [1], "label": "x" * 501}, "label"),
    ],
)
def test_a_change_of_several_labels_that_cannot_be_made_changes_nothing(
    client: TestClient, run_id: str, body: dict[str, Any], field: str
) -> None:
    answer = client.patch(f"/api/runs/{run_id}/labels", json=body | {"starred": True})
    assert answer.status_code == 422
    assert field in str(answer.json()["errors"])
    assert client.get(f"/api/runs/{run_id}/labels").json() == []


def test_labeled_and_dead_features_are_skipped(
    client: TestClient, run_id: str, index: FeatureIndex
) -> None:
    by_strength = [row.index for row in index.features(sort="max_activation", limit=500).items]
    put(client, run_id, by_strength[0], "mine")
    start(client, run_id, limit=3)
    wait_for_end(client, run_id)
    labeled = {row["feature"] for row in client.get(f"/api/runs/{run_id}/labels").json()}
    assert labeled == set(by_strength[:4])
    dead = index.features(state="dead").items[0].index
    answer = client.post(f"/api/runs/{run_id}/labels", json={"features": [dead, by_strength[0]]})
    assert (answer.status_code, answer.json()["type"]) == (
        409,
        "urn:sae-workbench:nothing-to-label",
    )
    asked = client.post(f"/api/runs/{run_id}/labels/estimate", json={"limit": 200_000}).json()
    alive = 300 - index.features(state="dead").total
    assert asked["features"] == alive - 4


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


def test_an_unknown_feature_is_named(client: TestClient, run_id: str) -> None:
    answer = client.post(f"/api/runs/{run_id}/labels", json={"features": [3, 300]})
    assert answer.status_code == 422
    assert "There is no feature 300; this SAE has features 0 to 299." in answer.json()["detail"]
    assert client.post("/api/runs/nobody/labels", json={}).status_code == 404
    assert client.get("/api/runs/nobody/labels").status_code == 404


@pytest.mark.both_databases
def test_a_persons_label_wins_over_a_concurrent_model(database: Database, run_id: str) -> None:
    """In either order; each write is one transaction."""
    for feature, first in ((1, "person"), (2, "model")):
        writers = {
            "person": lambda session, f=feature: store.set_label(
                session, run_id, f, LabelUpdate(label="mine")
            ),
            "model": lambda session, f=feature: store.propose_label(
                session, run_id, f, "its", model=MODEL, prompt_version="1", score=None
            ),
        }
        for author in sorted(writers, key=lambda name: name != first):
            with database.writing() as session:
                writers[author](session)
        with database.reading() as session:
            written = store.written_labels(session, run_id, [feature])[feature]
        assert (written.label, written.origin.author) == ("mine", "person")


def test_training_jobs_do_not_get_the_endpoints_key(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_LABELS_API_KEY", KEY)
    assert KEY not in settings.environment().values()
    assert KEY not in repr(settings)
