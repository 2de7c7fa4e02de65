"""A language model labels features and is scored; it never overwrites a person's label."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from httpx import Response
from starlette.testclient import TestClient

from backend import store
from backend.labels.requests import features_to_label
from backend.store.database import Database
from backend.store.labels import propose_label
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.features.labels.examples import examples_of
from sae_engine.features.labels.questions import PROMPT_VERSION, detection_score
from sae_engine.schema.features import FeatureSort
from sae_engine.schema.labels import LabelRequest, LabelUpdate
from tests.backend.conftest import wait_for
from tests.backend.fake_endpoint import (
    KEY,
    MODEL,
    Endpoint,
)
from tests.backend.labels.conftest import label, put, some_features, start, wait_for_end


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


@pytest.mark.both_databases
def test_what_a_person_wrote_meanwhile_is_not_overwritten(
    client: TestClient, run_id: str, index: FeatureIndex
) -> None:
    first, second = some_features(index, 2)
    path = f"/api/runs/{run_id}/labels"
    seen = {"label": "", "notes": "", "starred": False}
    put(client, run_id, second, "theirs", notes="their notes")

    def write(**change: Any) -> Response:
        body = {"features": [first, second], "replaces": seen} | change
        return client.patch(path, json=body)

    for change in ({"label": "mine"}, {"notes": "mine"}, {"label": "theirs", "notes": "mine"}):
        refused = write(**change)
        assert refused.status_code == 409
        assert "mine" in refused.json()["detail"]
    assert label(client, run_id, second).notes == "their notes"
    assert [w["feature"] for w in client.get(path).json()] == [second]

    assert write(starred=True, label="theirs").status_code == 200
    kept = label(client, run_id, second)
    assert (kept.label, kept.notes, kept.starred) == ("theirs", "their notes", True)


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


@pytest.mark.parametrize("sort", get_args(FeatureSort))
def test_the_first_features_are_those_of_the_list(
    client: TestClient, database: Database, run_id: str, index: FeatureIndex, sort: FeatureSort
) -> None:
    alive = some_features(index, 40)
    for place, feature in enumerate(alive[:30:3]):
        put(client, run_id, feature, "", starred=place % 2 == 0)
    put(client, run_id, alive[1], "a person's", starred=True)
    with database.writing() as session:
        for feature, text in zip(alive[-9::2], ["e", "B", "d", "A", "c"], strict=True):
            propose_label(session, run_id, feature, text, model="m", prompt_version="1", score=None)
        request = LabelRequest(sort=sort, limit=150, relabel=True)
        chosen = features_to_label(session, run_id, index, request)
        labels, stars = store.labels(session, run_id), store.stars(session, run_id)
    listed = index.features(
        sort=sort,
        order="asc" if sort in ("index", "label") else "desc",
        labels=labels,
        stars=stars,
        limit=index.d_sae,
    )
    expected = [row.index for row in listed.items if index.fired[row.index]]
    expected.remove(alive[1])
    assert chosen == expected[:150]


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
