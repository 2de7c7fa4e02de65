"""Numbers too large for the database are the client's error; other overflows are the server's."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.schema.problems import Problem
from tests.backend.conftest import URL
from tests.backend.fake_engine import fake_job
from tests.backend.indexed import add_indexed_run

pytestmark = pytest.mark.both_databases


@pytest.fixture
def run_id(settings: Settings, database: Database) -> str:
    return add_indexed_run(settings, database)


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 10**30, 10**400])
def test_a_number_beyond_the_databases_integers_is_refused(
    client: TestClient, run_id: str, number: int
) -> None:
    for path in (
        f"features/{number}",
        f"features/{number}/history",
        f"features?snapshot={number}",
        f"metrics?since_step={number}",
        f"labels?feature={number}",
        f"events?after={number}",
    ):
        answer = client.get(f"/api/runs/{run_id}/{path}")
        assert answer.status_code == 422, path
        assert Problem.model_validate_json(answer.content).errors, path
    label = f"/api/runs/{run_id}/features/{number}/label"
    assert client.put(label, json={"label": "x"}).status_code == 422


@pytest.mark.parametrize(
    "config",
    [
        {"train": {"total_tokens": 10**400}},
        {"train": {"total_tokens": 1e30}},
        {"train": {"total_tokens": 10**15, "batch_size_tokens": 16}},
        {"train": {"warmup_steps": 2**31}},
        {"sae": {"d_sae": 10**400}},
        {"index": {"tokens": 10**400}},
        {"data": {"seed": 2**63}},
        {"seed": 2**64},
        {"model": {"layer": 10**10}},
    ],
)
def test_a_number_that_no_run_can_use_is_refused_before_it_is_queued(
    client: TestClient, config: dict[str, dict[str, int]]
) -> None:
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"config": config})
    for path in ("/api/config/estimate", "/api/runs"):
        answer = client.post(path, content=body, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"], answer.text
    assert client.get("/api/runs").json()["total"] == 0


def test_an_overflow_inside_the_server_is_a_logged_500(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(*_: object) -> None:
        raise OverflowError("a mistake")

    monkeypatch.setattr(store, "count_tags", overflows)
    # uvicorn logs exceptions that leave the application
    loud = TestClient(create_app(settings, command=fake_job), URL)
    with loud as client, pytest.raises(OverflowError):
        client.get("/api/tags")
    quiet = TestClient(create_app(settings, command=fake_job), URL, raise_server_exceptions=False)
    with quiet as client:
        answer = client.get("/api/tags")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:sae-workbench:internal")
