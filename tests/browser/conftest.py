"""A real browser and a real server for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sae_engine.schema.api import ENDED, Run, RunPage

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll `condition` until it holds; fails the test, saying `what`, when the deadline passes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} within {seconds:.0f} s")
        time.sleep(0.1)


# Both fixtures end with their module: a running Playwright holds the thread's event loop.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium from the PATH; without one the test is skipped, but never in CI."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        reason = f"no Chromium on the PATH (looked for {', '.join(_NAMES)})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """An empty page; an uncaught error or a dialog in it fails the test."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(30_000)
    page = context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(f"uncaught: {error}"))

    def refuse(dialog) -> None:  # pyright: ignore[reportMissingParameterType]
        trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", refuse)
    yield page
    context.close()
    assert trouble == []


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


@pytest.fixture(scope="module")
def workbench_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a free port of the loopback, with a data folder of its own."""
    data_dir = tmp_path_factory.mktemp("data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
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
        yield server
        server.stop_runs()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
