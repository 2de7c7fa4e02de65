"""Disks that fill up, are read-only, or damage files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from backend.app import create_app
from backend.settings import Settings
from sae_engine.schema.runs import Run
from tests.backend.fake_engine import fake_job
from tests.chaos.conftest import Twin
from tests.chaos.workbench import (
    QUICK,
    ROUNDS,
    UP,
    Workbench,
    assert_like_its_twin,
    assert_prefix,
    assert_whole,
    opened,
)

DISK_BYTES = 64 * 2**20


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """A small separate disk at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={DISK_BYTES}", *options])]
    done = subprocess.run([*command, "chaos", str(path)], capture_output=True, text=True)
    if done.returncode:
        assert os.environ.get("CI") != "true", done.stderr
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class Ballast:
    """A file that fills a disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def leave(self, num_bytes: int) -> None:
        """Fill the disk until `num_bytes` are free."""
        with self._path.open("wb") as file:
            while True:
                free = shutil.disk_usage(self._path.parent).free
                with suppress(OSError):  # something else has used the space in the meantime
                    os.posix_fallocate(file.fileno(), 0, max(1, free - num_bytes))
                    return

    def drop(self) -> None:
        self._path.unlink()


def failed_with_full_disk(workbench: Workbench, run_id: str) -> Run:
    run = workbench.wait_for_status(run_id, "failed")
    assert run.error is not None
    assert run.error.type == "DiskFullError"
    assert run.error.message.startswith("The disk that holds ")
    assert "is full" in run.error.message
    assert run.resumable
    assert_whole(workbench, run_id)
    return run


def test_a_full_disk_fails_the_run_by_name_and_loses_nothing(twin: Twin, tmp_path: Path) -> None:
    """Full for the database, then for the run's next file, with space for no checkpoint or for one.
    After each, space is freed and the run resumed.
    """
    with (
        mounted(tmp_path / "data") as data,
        mounted(data / "runs") as runs,
        opened(data, QUICK) as workbench,
    ):
        points = twin.workbench.metrics(twin.run_id)
        run_id = workbench.create("disturbed")

        workbench.wait_for_step(run_id, 10)
        ballast = Ballast(data)
        ballast.leave(0)
        job = workbench.job_of(run_id)
        assert job is not None
        job.wait(timeout=60)
        assert workbench.run(run_id).status in ("running", "failed")
        refused = workbench.http.post("/api/runs", json={"preset": "quick-test"})
        assert refused.status_code == 507
        assert "is full" in refused.json()["detail"]
        ballast.drop()
        failed_with_full_disk(workbench, run_id)
        assert_prefix(workbench, run_id, points)

        step = workbench.run(run_id).progress.step
        ballast = Ballast(runs)
        checkpoint = workbench.folder(run_id).checkpoint.stat().st_size
        written = re.compile(r"/(checkpoints|features|index_corpus|index_codes)\b|sae\.safetensors")
        for room in (checkpoint // 2, checkpoint * 5 // 4):
            workbench.resume(run_id)
            workbench.wait_for_step(run_id, step + 9)
            ballast.leave(room)
            run = failed_with_full_disk(workbench, run_id)
            assert run.error is not None
            assert written.search(run.error.message)
            assert_prefix(workbench, run_id, points)
            ballast.drop()
            step = run.progress.step

        workbench.resume(run_id)
        assert_like_its_twin(workbench, run_id, *twin)


def test_a_read_only_data_folder_is_reported_at_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "data", "ro") as data:
        done = subprocess.run(
            [*UP, "--data-dir", str(data)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert f"Cannot write to the data folder '{data}' (Read-only file system)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(
    twin: Twin, tmp_path: Path
) -> None:
    with opened(tmp_path / "data", QUICK) as workbench:
        run_id = workbench.create("disturbed")
        folder = workbench.folder(run_id)
        workbench.wait_for_step(run_id, 20)
        job = workbench.job_of(run_id)
        assert job is not None
        job.kill()
        assert workbench.wait_for_status(run_id, "interrupted").resumable
        content = bytearray(folder.checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        folder.checkpoint.write_bytes(content)
        workbench.resume(run_id)
        assert_like_its_twin(workbench, run_id, *twin)
        [notice] = [text for text in workbench.notices(run_id) if "checkpoint" in text]
        assert f"'{folder.checkpoint}' is damaged" in notice
        assert "continues from the previous checkpoint, at step" in notice


@pytest.mark.parametrize("opened_before", [False, True])
@pytest.mark.parametrize("name", ["acts.npy", "vocabulary_bytes.npy"])
def test_a_truncated_index_is_reported_and_other_snapshots_still_work(
    twin: Twin, tmp_path: Path, name: str, opened_before: bool
) -> None:
    with serving_a_copy(twin, tmp_path) as (client, settings):
        older, newest = twin.workbench.snapshots(twin.run_id)[-2:]
        features = f"/api/runs/{twin.run_id}/features"
        if opened_before:
            assert client.get(features).status_code == 200
        path = settings.run_folder(twin.run_id).feature_index(newest) / name
        path.write_bytes(path.read_bytes()[:-16])
        answer = client.get(features)
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert str(path) in answer.json()["detail"]
        assert client.get(features, params={"snapshot": older}).status_code == 200


@pytest.mark.timeout(300 + 20 * ROUNDS)
@settings(
    max_examples=5 * ROUNDS,
    deadline=None,
    phases=[Phase.generate],  # an example takes half a second; shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_changed_byte_of_an_index_breaks_the_server(
    twin: Twin, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Changed bytes may change an answer; they must not cause a server error."""
    tmp_path = tmp_path_factory.mktemp("damaged")
    with serving_a_copy(twin, tmp_path) as (client, settings):
        folder = settings.run_folder(twin.run_id).feature_index(
            twin.workbench.snapshots(twin.run_id)[-1]
        )
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        for question in ("features", "features/3", "lookup?text=import", "densities"):
            answer = client.get(f"/api/runs/{twin.run_id}/{question}")
            assert answer.status_code in (200, 409), (path.name, question, answer.text)
    shutil.rmtree(tmp_path)


@contextmanager
def serving_a_copy(twin: Twin, tmp_path: Path) -> Iterator[tuple[TestClient, Settings]]:
    """A server in this process, on a copy of the undisturbed run's data."""
    settings = Settings(data_dir=tmp_path / "data")
    shutil.copytree(twin.workbench.data_dir, settings.data_dir)
    with TestClient(create_app(settings, command=fake_job), "http://127.0.0.1") as client:
        yield client, settings
