"""Runs on the machines of a cluster: placed, started, watched, ended, lost and found again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.jobs import ray_executor
from backend.jobs.executor import Alive, Ended, Job, NotStartedError, Unknown, job_command
from backend.jobs.executors import executor_for
from backend.jobs.local_executor import LocalExecutor
from backend.jobs.ray_api import RayApi
from backend.jobs.ray_executor import LOST_SILENCE, RayExecutor
from backend.jobs.slots import ALL_GPUS, Slot
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.errors import UserError
from tests.backend.conftest import URL, create, read, wait_for, wait_for_status
from tests.backend.fake_cluster import MIB, TOKEN, FakeCluster, running_cluster
from tests.backend.fake_engine import fake_job


@pytest.fixture
def cluster(tmp_path: Path, settings: Settings) -> Iterator[FakeCluster]:
    with running_cluster(tmp_path) as cluster:
        for node in ("a", "b"):
            cluster.environments[node] = {
                "SAE_WORKBENCH_DATA_DIR": str(settings.data_dir),
                "SAE_WORKBENCH_DATABASE_URL": settings.resolved_database_url,
                "NODE": node,
            }
        yield cluster


@pytest.fixture
def executor(cluster: FakeCluster, settings: Settings, database: Database) -> Iterator[RayExecutor]:
    """On SQLite, which only a real cluster could not reach."""
    local = LocalExecutor(settings, job_command, is_shared=True)
    executor = RayExecutor(settings, database, job_command, RayApi(cluster.url, TOKEN), local)
    executor.refresh()
    with closing(executor):
        yield executor


def problem(url: str, token: str | None, settings: Settings, database: Database) -> str | None:
    local = LocalExecutor(settings, job_command, is_shared=True)
    with closing(RayExecutor(settings, database, job_command, RayApi(url, token), local)) as found:
        found.refresh()
        return found.problem


def opened(cluster: FakeCluster) -> None:
    cluster.is_open = True


def aged(cluster: FakeCluster) -> None:
    cluster.version = "2.9.3"


def aged_and_opened(cluster: FakeCluster) -> None:
    cluster.version, cluster.is_open = "1.13.0", True


def emptied(cluster: FakeCluster) -> None:
    cluster.nodes = {"head": {"memory": 5.0}}


def unchanged(_: FakeCluster) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "token", "words"),
    [
        (unchanged, None, "Set SAE_WORKBENCH_RAY_TOKEN to the token of the Ray cluster."),
        (unchanged, "wrong", "refuses SAE_WORKBENCH_RAY_TOKEN"),
        (opened, TOKEN, "lets anyone run commands; start it with RAY_AUTH_MODE=token"),
        (aged, TOKEN, "runs Ray 2.9.3; use 2.60 or newer"),
        (aged_and_opened, TOKEN, "runs Ray 1.13.0; use 2.60 or newer"),
        (emptied, TOKEN, "No node of the Ray cluster offers a GPU or CPUs."),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(
    cluster: FakeCluster,
    settings: Settings,
    database: Database,
    change: Callable[[FakeCluster], None],
    token: str | None,
    words: str,
) -> None:
    change(cluster)
    found = problem(cluster.url, token, settings, database)
    assert found is not None
    assert words in found
    assert "\n" not in found


def test_a_url_that_is_no_cluster_is_one_sentence(settings: Settings, database: Database) -> None:
    found = problem("http://127.0.0.1:9", TOKEN, settings, database)
    assert found is not None
    assert "http://127.0.0.1:9 cannot be reached" in found


def test_a_cluster_needs_a_database_that_its_machines_can_reach(settings: Settings) -> None:
    settings = settings.model_copy(update={"ray_url": "http://127.0.0.1:9"})
    with pytest.raises(UserError, match="cannot use an SQLite database; set SAE_WORK"):
        create_app(settings)


def test_without_a_cluster_this_machine_runs_the_jobs(
    settings: Settings, database: Database
) -> None:
    assert isinstance(executor_for(settings, database, job_command), LocalExecutor)


def test_the_gpus_of_all_nodes_are_listed(cluster: FakeCluster, executor: RayExecutor) -> None:
    gpu = {"name": "H200", "utilizationGpu": 50, "memoryUsed": 10, "memoryTotal": 40}
    cluster.nodes["b"] = {"GPU": 1}
    cluster.gpus["b"] = [gpu]
    executor._next_refresh = 0
    executor.refresh()
    [device] = executor.devices()
    assert (device.id, device.utilization, device.memory_used_bytes) == ("b/cuda:0", 0.5, 10 * MIB)
    [on_cpu, on_gpu] = executor.slots()
    assert on_cpu.memory == (8 * MIB, 6 * MIB)
    assert on_gpu.memory == (40 * MIB, 30 * MIB)


@pytest.mark.parametrize(
    ("devices", "name", "share"),
    [([], "b/cuda:0", 1), (["cuda:0", "cuda:0"], "b/cuda:0#2", 0.5), ([], "b/cuda", 2)],
)
def test_a_job_is_pinned_to_its_node_and_its_share_of_the_gpus(
    cluster: FakeCluster,
    settings: Settings,
    database: Database,
    devices: list[str],
    name: str,
    share: float,
) -> None:
    cluster.nodes = {"a": {"GPU": 2}, "b": {"GPU": 2}}
    settings = settings.model_copy(update={"devices": devices})
    local = LocalExecutor(settings, job_command, is_shared=True)
    api = RayApi(cluster.url, TOKEN)
    with closing(RayExecutor(settings, database, job_command, api, local)) as executor:
        executor.refresh()
        slot = Slot("b/cuda", ALL_GPUS, {}, "b")
        slot = next((slot for slot in executor.slots() if slot.id == name), slot)
        executor.start("r-1", slot, ["r"])
    body = cluster.jobs["r-1"].body
    assert body["entrypoint_label_selector"] == {"ray.io/node-id": "id-of-b"}
    assert body["entrypoint_num_gpus"] == share
    assert body["entrypoint"].endswith("exec python -m backend.jobs.worker r-1 b")
    assert "runtime_env" not in body  # anyone with the token can read it


@pytest.mark.parametrize(
    ("entrypoint", "forced", "state"),
    [
        ("sleep 60", None, Alive()),
        ("sleep 60", "PENDING", Alive()),
        ("true", None, Ended(0)),
        ("echo one; echo the reason; exit 3", None, Ended(3, "the reason")),
        ("exit 137", None, Ended(-9)),
        ("sleep 60", "STOPPED", Ended()),
        ("sleep 60", "FAILED", Unknown(LOST_SILENCE)),
    ],
)
def test_what_ray_says_of_a_job_counts_as_far_as_it_can_know(
    cluster: FakeCluster,
    executor: RayExecutor,
    entrypoint: str,
    forced: str | None,
    state: object,
) -> None:
    label = {"ray.io/node-id": "id-of-a"}
    body = {
        "submission_id": "r-1", "entrypoint": entrypoint, "entrypoint_num_gpus": 0,
        "entrypoint_label_selector": label,
    }  # fmt: skip
    cluster.answer("POST", "/api/jobs/", f"Bearer {TOKEN}", body)
    job = cluster.jobs["r-1"]
    job.forced_status = forced
    if not entrypoint.startswith("sleep"):
        job.process.wait()
    found = executor.look([Job("r-1", "a/cpu", None)])["r-1"]
    if isinstance(state, Ended) and not state.last_line and isinstance(found, Ended):
        found = found._replace(last_line="")
    assert found == state


def test_a_cluster_that_is_away_judges_nothing_and_starts_nothing(
    cluster: FakeCluster, executor: RayExecutor, database: Database
) -> None:
    assert executor.look([Job("r-0", "a/cpu", None)]) == {"r-0": Unknown(LOST_SILENCE)}
    cluster.is_away = True
    assert executor.look([Job("r-1", "a/cpu", None)]) == {"r-1": Unknown(timedelta(minutes=10))}
    with pytest.raises(NotStartedError, match="No available agent to submit job") as caught:
        executor.start("r-2", executor.slots()[0], ["r"])
    assert caught.value.may_pass
    executor.end(Job("r-1", "a/cpu", None), signal.SIGTERM)  # logged, not raised
    executor.refresh()
    assert executor.problem is not None
    assert [slot.id for slot in executor.slots()] == ["a/cpu", "b/cpu"]
    cluster.is_away = False
    executor._next_refresh = 0
    executor.refresh()
    assert executor.problem is None


def test_a_job_that_waits_for_a_lost_node_is_given_up(
    cluster: FakeCluster, executor: RayExecutor
) -> None:
    executor.start("r-1", executor.slots()[1], ["r"])
    executor._seen.clear()
    cluster.jobs["r-1"].forced_status = "PENDING"
    jobs = [Job("r-1", "b/cpu", None)]
    assert executor.look(jobs) == {"r-1": Alive()}
    del cluster.nodes["b"]
    executor._next_refresh = 0
    executor.refresh()
    executor._seen.clear()
    assert executor.look(jobs) == {"r-1": Unknown(LOST_SILENCE)}


def test_jobs_of_this_machine_stay_with_it(executor: RayExecutor) -> None:
    gone = Job("terminal-1", None, None)
    assert executor.look([gone]) == {"terminal-1": Unknown(timedelta(seconds=30))}


def test_another_data_folder_is_refused(
    cluster: FakeCluster, executor: RayExecutor, settings: Settings, database: Database,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert executor.problem is None
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    other.data_dir.mkdir()
    found = problem(cluster.url, TOKEN, other, database)
    assert found is not None
    assert "This server does not see the data folder of the database" in found
    assert problem(cluster.url, TOKEN, settings, database) is None


# Whole servers


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
        assert "The node a was lost" in notice["message"]
        assert "(1 of 3 times)" in notice["message"]
        wait_for(lambda: read(client, run.id).progress.phase == "waiting")
        first.signal(signal.SIGCONT)
        wait_for(lambda: first.process.poll() is not None)
        assert (read(client, run.id).status, read(client, run.id).device) == ("running", "b/cpu")
        client.post(f"/api/runs/{run.id}/stop")
        assert wait_for_status(client, run.id, "stopped", "failed").status == "stopped"


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
    words = f"The node a does not see the data folder of the database at '{elsewhere}'"
    assert any(words in reason for reason in reasons)
    assert not any(elsewhere.iterdir())
