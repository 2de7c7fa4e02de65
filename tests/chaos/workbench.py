"""A server and its jobs as processes that tests kill, inspect and restart, and what must hold of
runs whatever happened.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from safetensors.numpy import load_file

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.schema.runs import ENDED, MetricsSeries, Notice, Run, Snapshot

UP = (sys.executable, "-m", "backend.cli.main", "up", "--port", "0")
"""The program as users start it."""
DEADLINE_SECONDS = 240.0
MACHINE_METRICS = {"tokens_per_second", "lm_share", "buffer_share", "sae_share"}
MACHINE_METRICS |= {"cpu_share", "memory_gib", "gpu_share", "gpu_memory_gib"}
"""Metrics that differ between identical runs."""
CONFIG: Mapping[str, Any] = {
    "data": {"ctx_len": 64, "heldout_tokens": 1000, "shuffle_tokens": 4000},
    "sae": {"d_sae": 128, "k": 8},
    "train": {
        "total_tokens": 64 * 120,
        "batch_size_tokens": 64,
        "warmup_steps": 4,
        "log_every": 1,
        "eval_every": 20,
        "eval_tokens": 1000,
        "ce_tokens": 256,
        "save_every": 8,
        "snapshot_every": 25,
    },
    "index": {"tokens": 1000, "snapshot_tokens": 1000},
}
"""Overrides of `quick-test`: a run of seconds that measures every step and saves often."""


ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
"""Number of kills, and a fifth of the number of damaged files; `make chaos` sets 50."""
QUICK = (sys.executable, "-m", "tests.chaos.servers", "quick")
"""The same, with jobs of the real engine that start fast."""
FAKE = (sys.executable, "-m", "tests.chaos.servers", "fake")
"""The same, with jobs of the fake engine."""


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS
) -> None:
    """Return once `condition` holds; fail at the deadline, naming `what` was awaited."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


class Workbench:
    """A data folder and a server on it that can be stopped and restarted."""

    def __init__(self, data_dir: Path, command: tuple[str, ...] = UP, **environment: str) -> None:
        self.data_dir = data_dir
        self._command = command
        self._environment = {
            **os.environ,
            "SAE_WORKBENCH_DATA_DIR": str(data_dir),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._output = data_dir.with_name(f"{data_dir.name}-{id(self)}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client()

    def start(self) -> None:
        """Start the server and wait for its first response."""
        with self._output.open("wb") as file:
            self.process = subprocess.Popen(
                self._command, stdout=file, stderr=subprocess.STDOUT, env=self._environment
            )
        wait_until(lambda: self._urls() or self._is_gone(), "the server's address")
        assert self._urls(), self.printed()
        self.http.close()
        self.http = httpx.Client(base_url=self._urls()[0], trust_env=False, timeout=60)
        wait_until(self._answers, "the server's first answer")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the server a signal and wait until it has exited."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=30)

    def close(self) -> None:
        """Kill the server and all other processes on its data."""
        if not self._is_gone():
            self.kill()
        self.http.close()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(timeout=30)

    def printed(self) -> str:
        return self._output.read_text()

    def _urls(self) -> list[str]:
        return re.findall(r"http://[\w.]+:\d+", self.printed())

    def _is_gone(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.http.get("/api/health").is_success
        assert not self._is_gone(), self.printed()
        return False

    def processes(self) -> list[psutil.Process]:
        """All processes on this data folder except the server, zombies included."""
        server = self.process.pid if self.process is not None else None
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid == server or process.pid == os.getpid():
                    continue
                is_child_of_server = process.ppid() == server and server is not None
                environment = {} if is_child_of_server else process.environ()
                if is_child_of_server or (
                    environment.get("SAE_WORKBENCH_DATA_DIR") == str(self.data_dir)
                ):
                    found.append(process)
        return found

    # Requests over REST

    def create(self, name: str, config: Mapping[str, Any] = CONFIG) -> str:
        body = {"preset": "quick-test", "name": name, "config": config}
        return self._post("/api/runs", body).id

    def resume(self, run_id: str) -> Run:
        """Resume a run from its checkpoint, or retry it if it has none."""
        verb = "resume" if self.run(run_id).resumable else "retry"
        return self._post(f"/api/runs/{run_id}/{verb}", None)

    def _post(self, path: str, body: object) -> Run:
        answer = self.http.post(path, json=body)
        assert answer.is_success, answer.text
        return Run.model_validate_json(answer.content)

    def run(self, run_id: str) -> Run:
        return Run.model_validate_json(self._get(f"/api/runs/{run_id}"))

    def metrics(self, run_id: str) -> dict[int, dict[str, object]]:
        """Metrics by step, without those that depend on the clock."""
        found = MetricsSeries.model_validate_json(self._get(f"/api/runs/{run_id}/metrics"))
        assert found.returned_points == found.total_points == len(found.step)
        points: dict[int, dict[str, object]] = {step: {} for step in found.step}
        for name, values in found.series.items():
            for step, value in zip(found.step, values, strict=True):
                if value is not None and name not in MACHINE_METRICS:
                    points[step][name] = value
        return points

    def notices(self, run_id: str) -> list[str]:
        answer = self.http.get(f"/api/runs/{run_id}/notices").raise_for_status().json()
        return [Notice.model_validate(notice).message for notice in answer]

    def snapshots(self, run_id: str) -> list[int]:
        answer = self.http.get(f"/api/runs/{run_id}/snapshots").raise_for_status().json()
        return [Snapshot.model_validate(snapshot).step for snapshot in answer]

    def _get(self, path: str) -> bytes:
        return self.http.get(path).raise_for_status().content

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.data_dir / "runs" / run_id)

    def wait_for_status(self, run_id: str, *statuses: str) -> Run:
        """Wait until a run has ended; fail if it is in none of the given states."""
        wait_until(lambda: self.run(run_id).status in ENDED, f"the end of run {run_id}")
        run = self.run(run_id)
        assert run.status in statuses, f"{run.status}: {run.error}"
        return run

    def wait_for_step(self, run_id: str, step: int) -> None:
        def reached() -> bool:
            run = self.run(run_id)
            assert run.status in ("queued", "running"), run.error
            return run.progress.step >= step

        wait_until(reached, f"step {step} of run {run_id}")

    def job_of(self, run_id: str) -> psutil.Process | None:
        """The process that trains a run."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if any(part.startswith(run_id) for part in process.cmdline()):
                    return process
        return None


@contextmanager
def opened(
    data_dir: Path, command: tuple[str, ...] = UP, **environment: str
) -> Iterator[Workbench]:
    """A started workbench whose processes are all ended afterwards."""
    workbench = Workbench(data_dir, command, **environment)
    try:
        workbench.start()
        yield workbench
    finally:
        workbench.close()


def assert_prefix(workbench: Workbench, run_id: str, twin: Mapping[int, object]) -> None:
    """The run's measurements are, value by value, the first ones of the undisturbed run."""
    points = workbench.metrics(run_id)
    steps = sorted(points)
    assert steps == sorted(twin)[: len(steps)]
    for step in steps[:-1]:  # the last one may lack its evaluation
        assert points[step] == twin[step], f"step {step}"
    for step in steps[-1:]:
        assert points[step].items() <= twin[step].items(), f"step {step}"


def assert_whole(workbench: Workbench, run_id: str) -> None:
    """Every published file in a run's folder is complete."""
    folder = workbench.folder(run_id)
    for file in (folder.sae, folder.checkpoint, folder.previous_checkpoint, folder.best.sae):
        if file.exists():
            load_file(file)
    for step in folder.snapshots():
        FeatureIndex.open(folder.feature_index(step)).verify()
    assert set(workbench.snapshots(run_id)) <= set(folder.snapshots())


def assert_like_its_twin(workbench: Workbench, run_id: str, twin: Workbench, twin_id: str) -> None:
    """A disturbed and resumed run ended exactly like the undisturbed one."""
    assert workbench.wait_for_status(run_id, "finished").error is None
    assert workbench.metrics(run_id) == twin.metrics(twin_id)
    assert workbench.snapshots(run_id) == twin.snapshots(twin_id)
    assert_whole(workbench, run_id)
    mine, theirs = workbench.folder(run_id), twin.folder(twin_id)
    for one, other in ((mine.sae, theirs.sae), (mine.best.sae, theirs.best.sae)):
        assert_same_tensors(one, other)
    leftovers = [*mine.path.rglob(".*.tmp"), *mine.path.rglob(".*.old")]
    leftovers += [mine.index_corpus, mine.index_codes]
    assert not [path for path in leftovers if path.exists()]


def assert_same_tensors(one: Path, other: Path) -> None:
    """Two files hold the same tensors, bit for bit."""
    weights = load_file(other)
    assert load_file(one).keys() == weights.keys()
    for name, values in load_file(one).items():
        np.testing.assert_array_equal(values, weights[name])
