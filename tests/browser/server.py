"""What the tests of this folder know about a running server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from sae_engine.schema.api import ENDED, Run, RunPage


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll `condition` until it holds; fails the test, saying `what`, when the deadline passes."""
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

    def stop_runs(self) -> None:
        """End what still runs, so that no job outlives its test."""
        for run in self.runs():
            if run.status not in ENDED:
                stop = f"{self.url}/api/runs/{run.id}/stop"
                httpx.post(stop, params={"force": "true"}, trust_env=False)
        wait_until(
            lambda: all(run.status in ENDED for run in self.runs()),
            seconds=60,
            what="all runs should have ended",
        )
