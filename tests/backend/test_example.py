"""The guide's example runs against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.backend.test_serve import up
from tests.house.repository import ROOT


def test_the_example_runs_to_its_end(tmp_path: Path) -> None:
    with up(tmp_path) as server:
        url = str(server.http.base_url).rstrip("/")
        environment = {**os.environ, "SAE_WORKBENCH_API_URL": url, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, ROOT / "docs/examples/first_run.py"],
            env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of the held-out variance is unexplained" in done.stdout
    assert "the run is finished" in done.stdout
    assert "features can be browsed" in done.stdout
    assert "feature " in done.stdout.split("' import' occurs")[1]
