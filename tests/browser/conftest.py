"""A real browser and a real server for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.server import Server, wait_until

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


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
