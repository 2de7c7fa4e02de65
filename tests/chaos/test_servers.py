"""Two servers on one data folder, unusable and locked databases, a NaN loss, and many readers while
several jobs write.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import save_file

from backend.jobs.retry import JOB_BUSY_SECONDS
from sae_engine.schema.runs import ENDED
from tests.backend.fake_engine import POURED_STEPS
from tests.chaos.workbench import (
    CONFIG,
    FAKE,
    QUICK,
    UP,
    Workbench,
    assert_whole,
    opened,
    wait_until,
)

NUM_READERS = 100


def test_a_second_server_starts_nothing_twice_and_takes_over(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with opened(data, FAKE) as first, opened(data, FAKE) as second:
        wait_until(lambda: supervises(first), "the first server supervises")
        assert not supervises(second)
        says_so = f"another server supervises the runs in {data}"
        wait_until(lambda: says_so in second.printed(), "the second server says so")
        assert "another server" not in first.printed()

        run_ids = [server.create("finish", {}) for server in (first, second, second)]
        for run_id in run_ids:
            second.wait_for_status(run_id, "finished")
            log = second.http.get(f"/api/runs/{run_id}/log").text
            assert log.count("fake engine: finish") == 1

        waiting = second.create("wait", {})
        second.wait_for_step(waiting, 20)
        job = second.job_of(waiting)
        first.kill()
        wait_until(lambda: supervises(second), "the second server supervises")
        assert second.run(waiting).status == "running"
        assert second.job_of(waiting) == job
        second.http.post(f"/api/runs/{waiting}/stop").raise_for_status()
        second.wait_for_status(waiting, "stopped")
        assert f"this server supervises the runs in {data} now" in second.printed()


def supervises(server: Workbench) -> bool:
    return server.http.get("/api/system").raise_for_status().json()["supervises"]


def test_a_database_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "workbench.sqlite3"
    command = [*UP, "--data-dir", str(tmp_path)]
    with opened(tmp_path, FAKE) as server:
        server.create("finish", {})
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = contents(database)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "9999" in done.stderr
    assert "use the SAE Workbench that wrote them, or another data folder" in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(database) == before


def contents(database: Path) -> list[str]:
    """The whole content of a database, as SQL statements."""
    with sqlite3.connect(database) as connection:
        found = list(connection.iterdump())
    connection.close()
    return found


def test_a_file_that_is_not_a_database_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "workbench.sqlite3").write_bytes(b"not a database at all" * 500)
    done = subprocess.run(
        [*UP, "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "file is not a database" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_database_locked_for_seconds_delays_runs_and_requests_and_loses_nothing(
    tmp_path: Path,
) -> None:
    """Longer than a job's tries to write last."""
    with opened(tmp_path / "data", FAKE) as server:
        run_id = server.create("pour", {})
        server.wait_for_step(run_id, 10)
        lock = sqlite3.connect(server.data_dir / "workbench.sqlite3", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        time.sleep(3 * JOB_BUSY_SECONDS)
        assert server.run(run_id).status == "running"
        lock.execute("ROLLBACK")
        lock.close()
        assert server.wait_for_status(run_id, "finished").error is None
        points = server.http.get(f"/api/runs/{run_id}/metrics").json()
        assert points["step"] == list(range(1, POURED_STEPS + 1))
        log = server.http.get(f"/api/runs/{run_id}/log").text
        assert log.count("the database is unavailable") == 1


def test_a_nan_loss_fails_the_run_and_keeps_earlier_results(
    tmp_path: Path,
) -> None:
    """The activations contain NaNs after the first checkpoints and snapshots."""
    folder = tmp_path / "data" / "poisoned"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, num_bad in (("train-0", 0), ("train-1", 200), ("heldout-0", 0)):
        x = random.standard_normal((4_000, 192), np.float32)
        x[random.choice(len(x), num_bad, replace=False), 0] = np.nan
        ids = random.integers(3, 500, len(x)).astype(np.int32)
        save_file({"activations": x, "token_ids": ids}, folder / f"{name}.safetensors")
    with opened(tmp_path / "data", QUICK) as workbench:
        data = {"activations": str(folder), "heldout_tokens": 1000}
        run_id = workbench.create("poisoned", {**CONFIG, "data": data})
        run = workbench.wait_for_status(run_id, "failed")
        assert run.error is not None
        assert run.error.type == "NonFiniteLossError", run.error.log_tail
        assert f"The loss became nan at step {run.progress.step}" in run.error.message
        assert "are kept" in run.error.message
        assert_whole(workbench, run_id)
        assert run.resumable
        step = workbench.snapshots(run_id)[-1]
        assert 0 < step < run.progress.step
        features = workbench.http.get(f"/api/runs/{run_id}/features")
        assert features.raise_for_status().json()["snapshot"] == step
        exported = workbench.http.get(f"/api/runs/{run_id}/export")
        assert exported.raise_for_status().headers["content-type"] == "application/zip"
        points = workbench.metrics(run_id)
        assert points[max(points)]["loss"] == "NaN"
        assert all(points[step]["loss"] != "NaN" for step in points if step < max(points))


def test_many_readers_and_three_writers_lose_no_row(tmp_path: Path) -> None:
    """100 threads read runs, curves and lists and follow events while three jobs store a point per
    millisecond; every request succeeds, and no point is missing.
    """
    latencies: list[float] = []
    answers: list[int] = []
    streams: dict[str, list[str]] = {}
    with opened(tmp_path / "data", FAKE, SAE_WORKBENCH_DEVICES="cpu,cpu,cpu") as workbench:
        run_ids = [workbench.create(f"pour {number}", {}) for number in range(3)]
        wait_until(
            lambda: all(workbench.run(run_id).status == "running" for run_id in run_ids),
            "three runs at once",
        )
        base_url = workbench.http.base_url

        def read(number: int) -> None:
            run_id = run_ids[number % 3]
            with httpx.Client(base_url=base_url, trust_env=False, timeout=60) as http:
                if number < 30:
                    with http.stream("GET", f"/api/runs/{run_id}/events") as stream:
                        answers.append(stream.status_code)
                        streams[f"{run_id} {number}"] = list(stream.iter_lines())
                    return
                paths = [
                    f"/api/runs/{run_id}",
                    f"/api/runs/{run_id}/metrics?max_points=200",
                    "/api/runs",
                ]
                ended = False
                while not ended:
                    for path in paths:
                        began = time.perf_counter()
                        answer = http.get(path)
                        latencies.append(time.perf_counter() - began)
                        answers.append(answer.status_code)
                        if path == paths[0]:
                            ended = answer.json()["status"] in ENDED

        readers = [threading.Thread(target=read, args=(number,)) for number in range(NUM_READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        for run_id in run_ids:
            workbench.wait_for_status(run_id, "finished")
            points = workbench.http.get(f"/api/runs/{run_id}/metrics").json()
            assert points["step"] == list(range(1, POURED_STEPS + 1))
            log = workbench.http.get(f"/api/runs/{run_id}/log").text
            assert "database is locked" not in log
        assert "database is locked" not in workbench.printed()
        assert "Traceback" not in workbench.printed()
    assert set(answers) == {200}
    assert len(streams) == 30
    for name, lines in streams.items():
        told = [
            json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")
        ]
        steps = [event["step"] for event in told if "values" in event]
        assert steps == list(range(1, POURED_STEPS + 1)), name
    p99 = statistics.quantiles(latencies, n=100)[98]
    print(f"{len(latencies)} answers to {NUM_READERS} readers, p99 {p99 * 1000:.0f} ms")
