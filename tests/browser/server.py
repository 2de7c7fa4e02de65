"""`sae-workbench up` as a process, and requests to it that set up a test."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from backend.cli.train import train_here
from backend.settings import Settings
from sae_engine.schema.runs import ENDED, Run, RunCreate, RunPage


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll `condition` until it holds; at the deadline, fail the test with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} within {seconds:.0f} s")
        time.sleep(0.1)


class Server(NamedTuple):
    """A running `sae-workbench up`."""

    url: str
    data_dir: Path

    def runs(self) -> list[Run]:
        answer = httpx.get(f"{self.url}/api/runs", trust_env=False)
        return RunPage.model_validate_json(answer.raise_for_status().content).items

    def create_run(self, body: dict[str, object]) -> Run:
        answer = httpx.post(f"{self.url}/api/runs", json=body, trust_env=False)
        assert answer.status_code == 201, answer.text
        return Run.model_validate_json(answer.content)

    def train_small_run(self, name: str, **data: object) -> Run:
        """Train the preset `quick-test` for seconds, with changes to its section `data`, in this
        process, as `sae-workbench train` does.
        """
        config = {
            "data": {"heldout_tokens": 6_000, **data},
            "train": {"total_tokens": 10_000},
            "index": {"tokens": 6_000, "snapshot_tokens": 1_000},
        }
        request = RunCreate(preset="quick-test", name=name, config=config)
        assert train_here(Settings(data_dir=self.data_dir), request) == 0
        [run] = [run for run in self.runs() if run.name == name]
        assert run.status == "finished"
        return run

    def stop_runs(self) -> None:
        """Stop every active run, so that no job outlives its test."""
        for run in self.runs():
            if run.status not in ENDED:
                stop = f"{self.url}/api/runs/{run.id}/stop"
                httpx.post(stop, params={"force": "true"}, trust_env=False)
        wait_until(
            lambda: all(run.status in ENDED for run in self.runs()),
            seconds=60,
            what="all runs should have ended",
        )


@contextmanager
def serving(data_dir: Path, *, leave_runs: bool = False, port: int = 0) -> Iterator[Server]:
    """Run `sae-workbench up` on a port of the loopback, by default a free one.

    At the end of the block active runs are stopped too, unless `leave_runs`.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    log = data_dir / "server.log"
    command = [Path(sys.executable).with_name("sae-workbench"), "up"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--data-dir", str(data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", data_dir)

    def is_up() -> bool:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            return httpx.get(f"{server.url}/api/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        wait_until(is_up, seconds=60, what="the server should answer")
        try:
            yield server
        except BaseException:
            leave_runs = False
            raise
        finally:
            if not leave_runs:
                server.stop_runs()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
