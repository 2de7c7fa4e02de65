"""Runs on the machines of a cluster: placed, started, watched, ended, lost and found again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from backend.app import create_app
from backend.jobs.executor import Alive, Ended, Job, NotStartedError, Unknown, job_command
from backend.jobs.executors import executor_for
from backend.jobs.local_executor import LocalExecutor
from backend.jobs.ray_api import RayApi
from backend.jobs.ray_executor import LOST_SILENCE, RayExecutor
from backend.jobs.slots import ALL_GPUS, Slot
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.errors import UserError
from tests.backend.fake_cluster import MIB, TOKEN, FakeCluster


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
        (emptied, TOKEN, "No machine of the Ray cluster offers a GPU or CPUs."),
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
