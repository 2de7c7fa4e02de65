"""A run belongs to no server process and to no browser tab."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.server import Server, serving, wait_until

pytestmark = pytest.mark.timeout(900)


def _wait_for_step(server: Server, beyond: int) -> int:
    wait_until(
        lambda: server.runs()[0].progress.step > beyond,
        seconds=300,
        what=f"the run should be beyond step {beyond}",
    )
    return server.runs()[0].progress.step


def test_a_run_continues_while_the_server_restarts_and_its_page_opens_by_its_address(
    page: Page, tmp_path: Path
) -> None:
    with serving(tmp_path, leave_runs=True) as server:
        body = {"preset": "quick-test", "config": {"train": {"total_tokens": 8_000_000}}}
        run = server.create_run(body)
        step = _wait_for_step(server, 0)
    with serving(tmp_path) as server:
        # The first thing that this server is asked for is a page deep inside.
        page.goto(f"{server.url}/run?id={run.id}")
        expect(page.get_by_role("link", name="New run")).to_be_visible()
        expect(page.locator(".wb-progressline")).to_contain_text("running")
        _wait_for_step(server, step)


def test_a_page_says_that_its_server_is_away_and_recovers_with_what_was_entered(
    page: Page, tmp_path: Path
) -> None:
    with serving(tmp_path) as server:
        page.goto(f"{server.url}/launch")
        expect(page.get_by_role("button", name="Start training")).to_be_visible()
        page.get_by_label("name", exact=True).locator("visible=true").first.fill("typed before")
        page.keyboard.press("Tab")
        expect(page.locator("code").first).to_contain_text("typed before")
    banner = page.locator(".wb-banner")
    expect(banner).to_contain_text("The server does not answer.")
    expect(page.locator(".stDialog")).to_be_hidden()  # Streamlit's own
    with serving(tmp_path, port=int(server.url.rpartition(":")[2])):
        expect(banner).to_have_count(0)
        expect(page.get_by_label("name", exact=True).first).to_have_value("typed before")
