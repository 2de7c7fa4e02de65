"""One's own text and steering, in a real browser, with the real language model."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from sae_engine.schema.runs import Run
from tests.browser.server import Server

pytestmark = pytest.mark.timeout(900)

_TEXT = "import os\nimport <script>window.harmed = true</script>"
_WARM_UP_MILLISECONDS = 240_000


@pytest.fixture(scope="module")
def small_run(workbench_server: Server) -> Run:
    """A finished run that was trained for seconds."""
    return workbench_server.train_small_run("small")


def _generated(page: Page) -> list[str]:
    """Both texts, once they are complete; while they grow there is a button that stops them."""
    expect(page.locator(".wb-generated")).to_have_count(2, timeout=_WARM_UP_MILLISECONDS)
    expect(page.locator(".st-key-halt")).to_have_count(0, timeout=_WARM_UP_MILLISECONDS)
    return page.locator(".wb-generated").all_inner_texts()


def test_a_text_is_read_a_feature_locked_and_steered_and_the_address_brings_it_all_back(
    page: Page, workbench_server: Server, small_run: Run
) -> None:
    page.goto(f"{workbench_server.url}/run?id={small_run.id}")
    page.get_by_role("link", name="Playground").click()
    box = page.get_by_label("Your text")
    box.fill(_TEXT)
    box.press("Control+Enter")
    chips = page.locator(".wb-tokens a.wb-token")
    expect(chips.first).to_have_text("import", timeout=_WARM_UP_MILLISECONDS)
    expect(page.locator(".wb-tokens .wb-token.out")).to_have_text("<bos>")
    assert "".join(chips.all_inner_texts()).replace("↵", "\n").strip() == _TEXT
    assert page.evaluate("window.harmed") is None

    chips.first.click()
    expect(page.locator(".wb-token.on")).to_have_text("import")
    expect(
        page.get_by_role("heading", name=re.compile("token 1: .* features? active"))
    ).to_be_visible()
    first = page.locator("table.probe tbody tr").first
    feature = first.locator("a.wb-index").inner_text()
    first.get_by_text("highlight").click()
    expect(page.locator(".wb-tokens")).to_have_count(1)  # for a moment the old ones stand too
    expect(page.get_by_text("colored by")).to_contain_text(f"feature {feature}")
    page.locator("table.probe tbody tr").first.get_by_text("steer").click()
    expect(page.get_by_role("link", name=f"Feature {feature}", exact=True)).to_be_visible()

    generate = page.locator(".st-key-generate button")
    expect(generate).to_have_count(1)  # for a moment the old one stands too
    expect(generate).to_be_enabled()
    page.locator(".st-key-generate button").click()
    plain, steered = _generated(page)
    assert plain.replace("↵", "").startswith("import os")
    page.reload()
    assert _generated(page) == [plain, steered]
    expect(page.locator(".wb-token.on")).to_have_text("import")
    assert page.evaluate("window.harmed") is None


def test_a_feature_is_tested_on_ones_own_text_which_stays_from_feature_to_feature(
    page: Page, workbench_server: Server, small_run: Run
) -> None:
    page.goto(f"{workbench_server.url}/lookup?id={small_run.id}&q=import")
    page.locator("table.lookup a.wb-name").first.click()
    expect(page.locator(".wb-contexts .wb-line").first).to_be_visible()
    lines = page.locator(".wb-contexts .wb-line").count()
    box = page.get_by_label("Test your own text")
    box.fill(_TEXT)
    box.press("Control+Enter")
    own = page.locator(".st-key-own-text .wb-contexts")
    # Lines are kept, and Playwright reads the end of one as white space.
    expect(own).to_contain_text("import os↵ import <script>", timeout=_WARM_UP_MILLISECONDS)
    expect(own.locator("b").first).to_be_visible()
    expect(page.locator(".wb-contexts .wb-line")).to_have_count(lines + 1)
    page.keyboard.press("Escape")
    page.locator(".st-key-right button").click()
    page.wait_for_url(re.compile("own=import"))
    expect(own).to_contain_text("import os")
    assert page.evaluate("window.harmed") is None
