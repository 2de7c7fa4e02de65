"""A real browser and a real server for the tests in this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.server import Server, serving

# In CI a failed test runs once more, and the report lists it: Chromium, the server and another
# worker's tests share the machine. Elsewhere it fails at once, so that races are noticed.
_RERUNS = 1 if os.environ.get("CI") else 0

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_FOLDER = Path(__file__).parent
_NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests in this folder their reruns."""
    for item in items:
        if item.path.is_relative_to(_FOLDER):
            item.add_marker(pytest.mark.flaky(reruns=_RERUNS))


# These fixtures end with their module: a running Playwright occupies the thread's event loop.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium from the PATH; without one the test is skipped, or fails in CI."""
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
    expect.set_options(timeout=30_000)
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
    """A server with an empty data folder."""
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server
