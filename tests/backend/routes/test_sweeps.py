"""Sweeps over REST: created as a whole or not at all, and trained on shared passes."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.store.database import Database
from sae_engine.schema.runs import Sweep
from tests.backend.conftest import read, wait_for, wait_for_status

pytestmark = pytest.mark.both_databases


def sweep(client: TestClient, grid: dict, name: str = "finish", **more: object):
    body = {"preset": "quick-test", "name": name, "grid": grid, **more}
    return client.post("/api/sweeps", json=body)


def make(client: TestClient, grid: dict, name: str = "finish", **more: object) -> Sweep:
    answer = sweep(client, grid, name, **more)
    assert answer.status_code == 201, answer.text
    return Sweep.model_validate_json(answer.content)


def pids(database: Database, made: Sweep) -> list[int | None]:
    with database.reading() as session:
        return [store.get_run(session, run.id).pid for run in made.runs]


def test_every_combination_becomes_a_run_of_the_group(client: TestClient) -> None:
    made = make(client, {"sae.k": [8, 16], "model.layer": [1, 2]}, tags=["grid"])
    settings = [(run.config.sae.k, run.config.model.layer) for run in made.runs]
    assert settings == [(8, 1), (8, 2), (16, 1), (16, 2)]
    assert [run.name for run in made.runs][:2] == ["finish k=8 layer=1", "finish k=8 layer=2"]
    assert {run.group_id for run in made.runs} == {made.id}
    assert all(run.tags == ["grid"] for run in made.runs)
    listed = client.get("/api/runs", params={"group_id": made.id}).json()["items"]
    assert {run["id"] for run in listed} == {run.id for run in made.runs}


def test_fields_with_the_same_last_part_are_distinguished_in_names(client: TestClient) -> None:
    made = make(client, {"seed": [0, 1], "data.seed": [5]})
    assert [run.name for run in made.runs] == [f"finish seed={n} data.seed=5" for n in (0, 1)]


def test_runs_that_can_share_a_pass_run_in_one_process(
    client: TestClient, database: Database
) -> None:
    made = make(client, {"sae.k": [8, 16], "data.seed": [0, 1]}, name="wait")
    seed_0, seed_1 = made.runs[::2], made.runs[1::2]
    for run in seed_0:
        wait_for(lambda run=run: read(client, run.id).progress.phase == "waiting")
    together = pids(database, made)
    assert together[0] is not None
    assert together[0] == together[2]
    assert [read(client, run.id).status for run in seed_1] == ["queued", "queued"]

    client.post(f"/api/runs/{seed_0[0].id}/stop")
    wait_for_status(client, seed_0[0].id, "stopped")
    assert read(client, seed_0[1].id).status == "running"
    client.post(f"/api/runs/{seed_0[1].id}/stop")
    for run in seed_1:
        wait_for(lambda run=run: read(client, run.id).progress.phase == "waiting")
        client.post(f"/api/runs/{run.id}/stop")
        wait_for_status(client, run.id, "stopped")
    assert pids(database, made)[1] == pids(database, made)[3] != together[0]


def test_a_stopped_member_resumes_alone(client: TestClient, database: Database) -> None:
    made = make(client, {"sae.k": [8, 16]}, name="wait")
    for run in made.runs:
        wait_for(lambda run=run: read(client, run.id).progress.phase == "waiting")
        client.post(f"/api/runs/{run.id}/stop")
    for run in made.runs:
        wait_for_status(client, run.id, "stopped")
    for run in made.runs:
        assert client.post(f"/api/runs/{run.id}/resume").status_code == 202
    wait_for(lambda: read(client, made.runs[0].id).progress.phase == "waiting")
    assert read(client, made.runs[1].id).status == "queued"
    for run in made.runs:
        wait_for(lambda run=run: read(client, run.id).progress.phase == "waiting")
        client.post(f"/api/runs/{run.id}/stop")
        wait_for_status(client, run.id, "stopped")


def test_a_killed_process_interrupts_all_its_runs(client: TestClient) -> None:
    made = make(client, {"sae.k": [8, 16]}, name="die")
    for run in made.runs:
        ended = wait_for_status(client, run.id, "interrupted")
        assert ended.error is not None
        assert ended.error.type == "SIGKILL"


def test_every_run_of_a_pass_has_a_log(client: TestClient) -> None:
    made = make(client, {"sae.k": [8, 16]})
    for run in made.runs:
        wait_for_status(client, run.id, "finished")
        wait_for(lambda run=run: f"run {run.id} finished" in log_of(client, run.id))


def log_of(client: TestClient, run_id: str) -> str:
    return client.get(f"/api/runs/{run_id}/log").text


@pytest.mark.parametrize("section", [5, [1], "text", False])
def test_a_grid_does_not_replace_a_section_that_is_none(
    client: TestClient, section: object
) -> None:
    for request in (sweep, estimate):
        answer = request(client, {"sae.k": [8]}, config={"sae": section})
        assert answer.status_code == 422
        assert "sae: This is a section with fields" in answer.text
    assert sweep(client, {"sae.k": [8]}, config={"sae": None}).status_code == 201


def estimate(client: TestClient, grid: dict, **more: object):
    return client.post("/api/config/estimate", json={"preset": "tiny", "grid": grid, **more})


def test_one_idempotency_key_creates_one_sweep(client: TestClient) -> None:
    body = {"preset": "quick-test", "name": "finish", "grid": {"sae.k": [8, 16]}}
    key = {"Idempotency-Key": "once"}
    first, second = (client.post("/api/sweeps", json=body, headers=key).json() for _ in range(2))
    assert first["id"] == second["id"]
    assert [r["id"] for r in first["runs"]] == [r["id"] for r in second["runs"]]
    other = client.post("/api/sweeps", json=body | {"name": "other"}, headers=key)
    assert other.status_code == 422


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"sae.kk": [1]}, "did you mean sae.k?"),
        ({"sae.k": []}, "sae.k: Give values"),
        ({"sae.k": [8, 8]}, "twice"),
        ({"sae.k": [8, 4096]}, "lower k or raise d_sae"),
        ({"sae.k": [8], "model.layer": [1, 99]}, "Layer 99 does not exist"),
        ({"seed": list(range(300))}, "has 300 combinations; the limit is 256"),
    ],
)
def test_a_sweep_with_an_invalid_member_creates_no_run(client: TestClient, grid: dict, words: str):
    answer = sweep(client, grid)
    assert answer.status_code == 422
    assert words in answer.text
    assert client.get("/api/runs").json()["items"] == []
