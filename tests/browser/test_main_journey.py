"""From the click on Start to a feature's contexts, in a real browser against a real run."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.server import Server, wait_until

pytestmark = pytest.mark.timeout(900)

_POINTS = """
() => Math.max(0, ...[...document.querySelectorAll(".js-plotly-plot")]
  .flatMap((plot) => (plot.data || []).map((trace) => (trace.y || []).length)))
"""
_SECONDS = 180
_MILLISECONDS = 1000 * _SECONDS
_FEATURE = re.compile(r"^Feature \d+$")


def _points(page: Page) -> int:
    """Number of points on the longest curve that is drawn."""
    return int(page.evaluate(_POINTS))


def _wait_for_points(page: Page, more_than: int) -> int:
    wait_until(
        lambda: _points(page) > more_than,
        seconds=_SECONDS,
        what=f"a curve should have more than {more_than} points",
    )
    return _points(page)


def _launch(page: Page, server: Server, total_tokens: int) -> str:
    """Start `quick-test` with another budget, from the start page; returns the run page's URL."""
    page.goto(server.url)
    page.get_by_role("link", name="Train your first SAE").click()
    page.locator("a.wb-preset", has_text="quick-test").click()
    tokens = page.locator('[class*="st-key-url"][class*="total_tokens"] input')
    expect(tokens).to_have_value("40000")
    tokens.fill(str(total_tokens))
    tokens.press("Enter")
    expect(page.get_by_text(f"{total_tokens:,} tokens in batches")).to_be_visible()
    page.locator(".st-key-start button").click()
    page.wait_for_url(re.compile(r"/run\?.*id="))
    return page.url


def _open_first_feature(page: Page) -> None:
    page.locator(".st-key-go-primary-browse a").click()
    page.locator("table.features a.wb-name").first.click()
    expect(page.get_by_role("heading", name=_FEATURE)).to_be_visible()
    expect(page.locator(".wb-contexts .wb-line").first).to_be_visible()


def test_a_newcomer_launches_a_run_watches_it_opens_a_feature_stops_it_and_looks_up_a_token(
    page: Page, workbench_server: Server
) -> None:
    run_page = _launch(page, workbench_server, total_tokens=4_000_000)
    first = _wait_for_points(page, more_than=0)
    _wait_for_points(page, more_than=first)

    expect(page.locator(".st-key-go-primary-browse a")).to_be_visible(timeout=_MILLISECONDS)
    _open_first_feature(page)
    assert [run.status for run in workbench_server.runs()] == ["running"]

    page.goto(run_page)
    page.get_by_role("button", name="Stop").click()
    stopped = page.locator(".wb-progressline").get_by_text("stopped")
    expect(stopped).to_be_visible(timeout=_MILLISECONDS)
    _open_first_feature(page)

    heading = page.get_by_role("heading", name=_FEATURE).inner_text()
    page.reload()
    expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()

    page.goto(run_page.replace("/run?", "/lookup?") + "&q=self")
    expect(page.locator(".wb-matched")).to_contain_text("self")
    page.locator("table.lookup a.wb-name").first.click()
    page.wait_for_url(re.compile(r"/feature\?"))
    expect(page.locator(".wb-contexts").first).to_contain_text("self")
