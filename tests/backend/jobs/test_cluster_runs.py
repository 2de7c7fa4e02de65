"""Servers whose runs train on the machines of a cluster: queued, moved, lost, refused."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.jobs import ray_executor
from backend.settings import Settings
from backend.store.database import Database
from tests.backend.conftest import URL, create, read, wait_for, wait_for_status
from tests.backend.fake_cluster import TOKEN, FakeCluster
from tests.backend.fake_engine import fake_job


@contextmanager
def server(settings: Settings, cluster: FakeCluster) -> Iterator[TestClient]:
    settings = settings.model_copy(update={"ray_url": cluster.url})
    settings = settings.model_validate({**settings.model_dump(), "ray_token": TOKEN})
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        wait_for(lambda: client.get("/api/system").json()["problem"] is None)
        yield client


on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.1)


@on_postgresql
@pytest.mark.postgresql
def test_the_queue_runs_on_all_nodes_and_a_new_server_finds_its_runs(
    settings: Settings, database: Database, cluster: FakeCluster
) -> None:
    with server(settings, cluster) as client:
        runs = [create(client, "wait") for _ in range(3)]
        for run in runs[:2]:
            wait_for(lambda run=run: read(client, run.id).progress.step == 20)
        assert [read(client, run.id).device for run in runs] == ["a/cpu", "b/cpu", None]
        slots = client.get("/api/system").json()["slots"]
        assert [(slot["id"], slot["runs"]) for slot in slots] == [
            ("a/cpu", [runs[0].id]),
            ("b/cpu", [runs[1].id]),
        ]
        waiting = read(client, runs[2].id).waiting_for
        assert waiting == "Waiting for a/cpu and b/cpu, in use by 'wait'."
        assert "fake engine: wait, resume=False" in client.get(f"/api/runs/{runs[0].id}/log").text
    with server(settings, cluster) as client:
        assert [read(client, run.id).status for run in runs] == ["running", "running", "queued"]
        client.post(f"/api/runs/{runs[0].id}/stop")
        assert wait_for_status(client, runs[0].id, "stopped", "failed", "interrupted").resumable
        wait_for(lambda: read(client, runs[2].id).device == "a/cpu")
        client.post(f"/api/runs/{runs[1].id}/stop?force=true")
        assert wait_for_status(client, runs[1].id, "stopped", "failed").status == "stopped"
        client.post(f"/api/runs/{runs[0].id}/resume")
        wait_for(lambda: read(client, runs[0].id).device == "b/cpu")
        wait_for(lambda: "resume=True" in client.get(f"/api/runs/{runs[0].id}/log").text)
        for run in (runs[0], runs[2]):
            client.post(f"/api/runs/{run.id}/stop")
            wait_for_status(client, run.id, "stopped")


@on_postgresql
@pytest.mark.postgresql
def test_a_run_that_resumes_goes_back_to_its_kind_of_gpu(
    settings: Settings, database: Database, cluster: FakeCluster
) -> None:
    for node, kind in {"a": "A100", "b": "H100"}.items():
        cluster.nodes[node] = {"GPU": 1}
        cluster.gpus[node] = [{"name": kind}]
    with server(settings, cluster) as client:
        runs = [create(client, "wait") for _ in range(2)]
        for run in runs:
            wait_for(lambda run=run: read(client, run.id).progress.step == 20)
            client.post(f"/api/runs/{run.id}/stop")
        for run, device in zip(runs, ("a/cuda:0", "b/cuda:0"), strict=True):
            assert wait_for_status(client, run.id, "stopped", "failed").device == device
        client.post(f"/api/runs/{runs[1].id}/resume")
        wait_for(lambda: read(client, runs[1].id).progress.phase == "waiting")
        assert read(client, runs[1].id).device == "b/cuda:0"
        client.post(f"/api/runs/{runs[1].id}/stop")
        wait_for_status(client, runs[1].id, "stopped")


@on_postgresql
@pytest.mark.postgresql
def test_a_job_that_ray_has_lost_goes_on_while_it_reports_and_is_replaced_when_it_does_not(
    settings: Settings,
    database: Database,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the clocks of the nodes are minutes ahead and behind."""
    cluster.environments["a"]["CLOCK_MINUTES"] = "5"
    cluster.environments["b"]["CLOCK_MINUTES"] = "-5"
    monkeypatch.setattr(ray_executor, "LOST_SILENCE", timedelta(seconds=2))
    # As usual, a node is known to be gone before a run on it is given up.
    monkeypatch.setattr(ray_executor, "NODES_SECONDS", 0.25)
    with server(settings, cluster) as client:
        run = create(client, "wait")
        wait_for(lambda: read(client, run.id).progress.step == 20)
        with database.reading() as session:
            reported_at = store.get_run(session, run.id).reported_at
        assert reported_at is not None
        assert reported_at - datetime.now(UTC) > timedelta(minutes=4)
        first = cluster.job_on("a")
        first.forced_status = "FAILED"
        other = create(client, "finish")  # takes seconds on the other node
        wait_for_status(client, other.id, "finished")
        assert read(client, run.id).status == "running"
        first.signal(signal.SIGSTOP)
        del cluster.nodes["a"]
        wait_for(lambda: read(client, run.id).device == "b/cpu")
        assert read(client, run.id).alerts[-1] == "node_lost"
        [notice] = [n for n in client.get(f"/api/runs/{run.id}/notices").json() if n["kind"]][1:]
        assert "The machine a was lost" in notice["message"]
        assert "(1 of 3 times)" in notice["message"]
        wait_for(lambda: read(client, run.id).progress.phase == "waiting")
        first.signal(signal.SIGCONT)
        wait_for(lambda: first.process.poll() is not None)
        assert (read(client, run.id).status, read(client, run.id).device) == ("running", "b/cpu")
        client.post(f"/api/runs/{run.id}/stop")
        assert wait_for_status(client, run.id, "stopped", "failed").status == "stopped"


@on_postgresql
@pytest.mark.postgresql
def test_a_machine_without_the_address_of_the_database_says_so(
    settings: Settings, database: Database, cluster: FakeCluster
) -> None:
    cluster.environments["a"]["SAE_WORKBENCH_DATABASE_URL"] = ""
    with server(settings, cluster) as client:
        run = create(client, "finish")
        wait_for_status(client, run.id, "finished", "failed", "interrupted")
        assert read(client, run.id).device == "b/cpu"
        slots = {slot["id"]: slot["problem"] for slot in client.get("/api/system").json()["slots"]}
        assert slots["b/cpu"] is None
        words = "SAE_WORKBENCH_DATABASE_URL is not set on the machine a; set it before `ray start`"
        assert words in slots["a/cpu"]
    [job] = [job for job in cluster.jobs.values() if job.body["entrypoint"].endswith("a")]
    assert words in job.info()["message"]


@on_postgresql
@pytest.mark.postgresql
def test_a_run_goes_to_the_node_that_sees_the_data_folder(
    settings: Settings, database: Database, cluster: FakeCluster, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cluster.environments["a"]["SAE_WORKBENCH_DATA_DIR"] = str(elsewhere)
    with server(settings, cluster) as client:
        run = create(client, "finish")
        reasons: list[str] = []

        def ended() -> bool:
            found = read(client, run.id)
            reasons.append(found.waiting_for or "")
            return found.status in ("finished", "failed", "interrupted")

        wait_for(ended)
        assert read(client, run.id).status == "finished"
        assert read(client, run.id).device == "b/cpu"
    words = f"The machine a does not see the data folder of the database at '{elsewhere}'"
    assert any(words in reason for reason in reasons)
    assert not any(elsewhere.iterdir())
