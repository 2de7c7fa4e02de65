"""Runs on two nodes of a real Ray cluster, of which everything is killed or frozen; only in
`make chaos`, because a cluster on two cores takes minutes to start.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from backend.jobs.ray_api import ClusterError
from backend.store.states import FIRST_PHASE
from sae_engine.schema.machine import System
from sae_engine.schema.runs import ENDED
from tests.backend.postgres import MISSING, find_programs, running_server
from tests.chaos import ray_cluster
from tests.chaos.ray_cluster import RayCluster, frozen, problem_of, running_ray
from tests.chaos.workbench import (
    CONFIG,
    QUICK,
    Workbench,
    assert_like_its_twin,
    assert_prefix,
    assert_same_tensors,
    opened,
    wait_until,
)

pytestmark = pytest.mark.timeout(1200)
NUM_KILLS = 20
LONG: Mapping[str, Any] = {
    **CONFIG,
    "model": {"device": "cpu"},
    "train": {
        **CONFIG["train"],
        "total_tokens": 64 * 1000,
        "eval_every": 250,
        "save_every": 25,
        "snapshot_every": 200,
    },
}
"""Long enough to be disturbed, although its curve is stored every two seconds only; on the CPU,
because the nodes' GPUs are pretended.
"""


class Lab(NamedTuple):
    cluster: RayCluster
    workbench: Workbench
    twin_id: str
    """An undisturbed run, on one of the nodes."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    programs = find_programs()
    assert programs is not None, MISSING
    assert ray_cluster.is_installed(), "pip install '.[ray]'"
    folder = tmp_path_factory.mktemp("lab")
    data = folder / "data"
    data.mkdir()
    with running_server(programs) as postgres, postgres.database() as url:
        shared = {
            "SAE_WORKBENCH_DATABASE_URL": url,
            "SAE_WORKBENCH_DATA_DIR": str(data),
            "PYTHONPATH": str(Path.cwd()),
            "NUMBA_NUM_THREADS": "1",
            "SAE_WORKBENCH_NICENESS": "0",
        }
        with running_ray(folder, shared) as cluster:
            ray = {"SAE_WORKBENCH_RAY_URL": cluster.url}
            ray |= {"SAE_WORKBENCH_RAY_TOKEN": ray_cluster.TOKEN}
            with opened(data, QUICK, **shared, **ray) as workbench:
                wait_until(lambda: problem(workbench) is None, "the server to see the cluster")
                twin_id = workbench.create("undisturbed", LONG)
                workbench.wait_for_status(twin_id, "finished")
                yield Lab(cluster, workbench, twin_id)


def problem(workbench: Workbench) -> str | None:
    return workbench.http.get("/api/system").json()["problem"]


@pytest.fixture(autouse=True)
def whole(lab: Lab) -> None:
    """All nodes run when a test begins."""
    lab.cluster.start_missing()
    wait_until(lambda: len(system(lab).slots) == 4, "the slots of both nodes")


def system(lab: Lab) -> System:
    return System.model_validate_json(lab.workbench.http.get("/api/system").content)


def node_of(lab: Lab, run_id: str) -> str:
    device = lab.workbench.run(run_id).device or ""
    return device.partition("/")[0]


def status(cluster: RayCluster, job: str) -> str:
    """What Ray says of a job."""
    with suppress(ClusterError):
        info = cluster.api.job(job)
        return info.status if info is not None else ""
    return ""


def process_of(lab: Lab, run_id: str) -> psutil.Process:
    wait_until(lambda: lab.workbench.job_of(run_id), "the run's process")
    job = lab.workbench.job_of(run_id)
    assert job is not None
    return job


def test_runs_on_nodes_are_stopped_resumed_and_found_by_a_new_server(lab: Lab) -> None:
    workbench = lab.workbench
    slots = [slot.id for slot in system(lab).slots]
    assert slots == ["a/cuda:0", "a/cpu", "b/cuda:0", "b/cpu"]
    run_ids = [workbench.create(name, LONG) for name in ("first", "second", "third")]
    workbench.wait_for_step(run_ids[0], 10)
    job = process_of(lab, run_ids[0])
    assert {node_of(lab, run_id) for run_id in run_ids[:2]} == {"a", "b"}
    workbench.kill()
    workbench.start()
    assert workbench.run(run_ids[0]).status in ("running", "finished")
    assert job.is_running() or workbench.run(run_ids[0]).status == "finished"
    workbench.http.post(f"/api/runs/{run_ids[1]}/stop?force=true")
    workbench.wait_for_status(run_ids[1], "stopped", "finished")
    workbench.wait_for_step(run_ids[2], 5)
    workbench.http.post(f"/api/runs/{run_ids[2]}/stop")
    workbench.wait_for_status(run_ids[2], "stopped", "finished")
    for run_id in run_ids[1:]:
        if workbench.run(run_id).status == "stopped":
            workbench.resume(run_id)
    for run_id in run_ids[:2]:
        assert_like_its_twin(workbench, run_id, workbench, lab.twin_id)
    workbench.wait_for_status(run_ids[2], "finished")  # with an evaluation where it was stopped
    points, twin = workbench.metrics(run_ids[2]), workbench.metrics(lab.twin_id)
    assert all(points[step].items() >= values.items() for step, values in twin.items())
    assert_same_tensors(workbench.folder(run_ids[2]).sae, workbench.folder(lab.twin_id).sae)


def test_a_run_whose_node_dies_goes_on_elsewhere_by_itself(lab: Lab) -> None:
    run_id = lab.workbench.create("orphan", LONG)
    lab.workbench.wait_for_step(run_id, 10)
    node = node_of(lab, run_id)
    began = time.monotonic()
    lab.cluster.node(node).raylet().kill()
    wait_until(lambda: node_of(lab, run_id) not in (node, ""), "the other node")
    print(f"moved {time.monotonic() - began:.0f} s after its raylet was killed")
    assert_prefix(lab.workbench, run_id, lab.workbench.metrics(lab.twin_id))
    assert_like_its_twin(lab.workbench, run_id, lab.workbench, lab.twin_id)
    assert "node_lost" in lab.workbench.run(run_id).alerts


def test_a_run_goes_on_while_ray_calls_it_failed_and_is_fenced_once_it_was_replaced(
    lab: Lab,
) -> None:
    workbench, cluster = lab.workbench, lab.cluster
    run_id = workbench.create("frozen", LONG)
    wait_until(lambda: workbench.run(run_id).progress.phase == FIRST_PHASE, "its first report")
    node, job = node_of(lab, run_id), process_of(lab, run_id)
    name = next(part for part in job.cmdline() if part.startswith(run_id))
    began = time.monotonic()
    thaw_job = frozen([job])  # or it might end before Ray's verdict
    thaw_node = frozen([cluster.node(node).raylet()])
    try:
        wait_until(lambda: status(cluster, name) == "FAILED", "Ray's verdict")
        print(f"FAILED {time.monotonic() - began:.0f} s after its raylet was frozen")
        thaw_job()
        step = workbench.run(run_id).progress.step
        workbench.wait_for_step(run_id, step + 20)
        assert job.is_running()
        began = time.monotonic()
        thaw_job = frozen([job])
        wait_until(lambda: node_of(lab, run_id) not in (node, ""), "the other node")
        print(f"moved {time.monotonic() - began:.0f} s after its process was frozen too")
        workbench.wait_for_step(run_id, step + 21)
        thaw_job()
        began = time.monotonic()
        wait_until(lambda: not job.is_running() or job.status() == "zombie", "its end")
        print(f"the superseded process ended after {time.monotonic() - began:.1f} s")
        assert workbench.run(run_id).status in ("running", "finished")
    finally:
        thaw_node()
        cluster.node(node).kill()
    assert_like_its_twin(workbench, run_id, workbench, lab.twin_id)


def test_a_run_survives_the_death_of_the_head(lab: Lab) -> None:
    run_id = lab.workbench.create("headless", LONG)
    lab.workbench.wait_for_step(run_id, 10)
    lab.cluster.node("head").kill()
    waiting = lab.workbench.create("waiting", LONG)
    wait_until(lambda: system(lab).problem is not None, "the problem")
    print(system(lab).problem)
    assert lab.workbench.run(waiting).waiting_for == system(lab).problem
    time.sleep(10)
    print("nodes that run without the head:", [n.name for n in lab.cluster.nodes if n.is_running()])
    for node in lab.cluster.nodes[1:]:  # they belong to the old head
        if node.is_running():
            node.kill()
    lab.cluster.start_missing()
    for each in (run_id, waiting):
        assert_like_its_twin(lab.workbench, each, lab.workbench, lab.twin_id)


@pytest.mark.timeout(180 * NUM_KILLS)
def test_nothing_is_lost_whatever_is_killed_in_any_order(lab: Lab) -> None:
    """Nodes, the head, the server and jobs, with a printed seed, while two runs are active."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    run_ids: list[str] = []
    for number in range(NUM_KILLS):
        wait_until(lambda: _has_job(lab, run_ids), "a job")
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 10))  # while runs are claimed, start or load
        else:
            _wait_for_a_step(lab, run_ids, chance.randint(1, 350))
        what = chance.choice(["node", "head", "server", "job"])
        print(f"{number}: {what}, with", {i: lab.workbench.run(i).progress.step for i in run_ids})
        _kill(lab, what, run_ids, chance)
        lab.cluster.start_missing()
    for run_id in run_ids:
        wait_until(lambda run_id=run_id: _is_finished(lab, run_id), f"the end of {run_id}", 600)
        assert_like_its_twin(lab.workbench, run_id, lab.workbench, lab.twin_id)


def _wait_for_a_step(lab: Lab, run_ids: Sequence[str], step: int) -> None:
    active = [run_id for run_id in run_ids if not _is_finished(lab, run_id)]

    def reached() -> bool:
        runs = [lab.workbench.run(run_id) for run_id in active]
        return any(run.progress.step >= step or run.status in ENDED for run in runs)

    wait_until(reached, f"step {step}")


def _has_job(lab: Lab, run_ids: list[str]) -> bool:
    """Whether a run has a process; asked again, because a run may turn out to be interrupted."""
    _keep_two_active(lab, run_ids)
    return any(map(lab.workbench.job_of, run_ids))


def _keep_two_active(lab: Lab, run_ids: list[str]) -> None:
    while sum(not _is_finished(lab, run_id) for run_id in run_ids) < 2:
        run_ids.append(lab.workbench.create(f"disturbed {len(run_ids)}", LONG))


def _is_finished(lab: Lab, run_id: str) -> bool:
    """Also resumes the run if it was interrupted, as its owner would."""
    run = lab.workbench.run(run_id)
    assert run.status != "failed", run.error
    if run.status in ENDED and run.status != "finished":
        assert run.status == "interrupted", run.error
        lab.workbench.resume(run_id)
    return run.status == "finished"


def _kill(lab: Lab, what: str, run_ids: list[str], chance: random.Random) -> None:
    head, *others = lab.cluster.nodes
    match what:
        case "node":
            chance.choice(others).kill()
        case "head":
            for node in (head, *others):  # nodes belong to the head that they were started with
                node.kill()
        case "server":
            lab.workbench.kill()
            lab.workbench.start()
        case _:
            jobs = [job for job in map(lab.workbench.job_of, run_ids) if job is not None]
            for job in jobs[:1]:
                job.kill()


def test_a_wrong_token_and_an_open_cluster_are_one_sentence(lab: Lab) -> None:
    assert problem_of(lab.cluster.url, "wrong").endswith(
        "refuses SAE_WORKBENCH_RAY_TOKEN; set it to the RAY_AUTH_TOKEN that the cluster was "
        "started with."
    )
    assert "Set SAE_WORKBENCH_RAY_TOKEN" in problem_of(lab.cluster.url, None)
    for node in lab.cluster.nodes:
        node.kill()
    head = lab.cluster.node("head")
    closed = dict(head.environment)
    head.environment |= {"RAY_AUTH_MODE": "disabled"}
    del head.environment["RAY_AUTH_TOKEN"]
    words = "lets anyone run commands"
    try:
        head.start()
        wait_until(lambda: words in problem_of(lab.cluster.url, "any"), "the refusal")
        wait_until(lambda: words in (system(lab).problem or ""), "the refusal on the page")
    finally:
        head.kill()
        head.environment = closed


def test_two_servers_on_one_cluster_have_one_supervisor(lab: Lab) -> None:
    environment = {
        name: value
        for name, value in lab.workbench._environment.items()
        if name.startswith("SAE_WORKBENCH_")
    }
    with_data = environment.pop("SAE_WORKBENCH_DATA_DIR")
    second = Workbench(Path(with_data), QUICK, **environment)
    try:
        second.start()
        wait_until(lambda: len(second.http.get("/api/system").json()["slots"]) == 4, "its slots")
        run_id = second.create("asked of the second", LONG)
        second.wait_for_step(run_id, 10)
        lab.workbench.kill()
        assert second.wait_for_status(run_id, "finished").error is None
        wait_until(lambda: second.http.get("/api/system").json()["supervises"], "the takeover")
        assert_like_its_twin(second, run_id, second, lab.twin_id)
    finally:
        if second.process is not None:
            second.kill(signal.SIGTERM)
        second.http.close()
        lab.workbench.start()
