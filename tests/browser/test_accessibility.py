"""Every page meets WCAG 2.1 A and AA in both themes, fits 800 pixels, and obeys the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from tests.browser.server import Server
from tests.browser.two_runs import HOSTILE, LABELED, serving_two_runs

pytestmark = pytest.mark.timeout(600)

_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
_EXCEPTIONS: dict[str, str] = {}
"""Rules that Streamlit's own widgets break and style.css cannot mend, with the widget."""

_PAGES = {
    "./": "table.runs",
    "launch?preset=quick-test": ".wb-forecast",
    "import_sae": ".wb-title",
    "system": "table.slots",
    "run?id={a}": ".st-key-chart-loss, .wb-cards",
    "features?id={a}&pick=1,3": "table.features",
    "feature?id={a}&index=2": ".wb-contexts",
    "map?id={a}": ".st-key-map .js-plotly-plot",
    "lookup?id={a}&q=cat": ".wb-matched",
    "playground?id={a}&steer=2:2": ".st-key-generate",
    "compare?runs={a},{b}": ".wb-key",
    "compare?runs={a},{b}&part=features": "table.matches",
    "glossary": ".st-key-glossary table",
}
"""Addresses of all pages, each with what it shows once it is drawn."""
_CLICKS = {
    "run?id={a}": (".st-key-more button", ".st-key-delete button"),
    "features?id={a}&pick=1,3": (".st-key-downloads button",),
    "compare?runs={a},{b}&part=features": (".wb-why summary",),
    "glossary": (".wb-helpbutton",),
}
"""What is opened before the page is judged."""

# Attributes that a screen reader says or a hover shows, with what only escaping can have left.
_ESCAPED = """
() => [...document.querySelectorAll("[aria-label], [title], [placeholder]")]
  .flatMap((e) => [e.ariaLabel, e.title, e.placeholder])
  .filter((text) => text && /&(lt|gt|amp|quot|#x?[0-9a-f]+);|\\\\[\\[\\]*_$:]/i.test(text))
"""
_FITS = """
() => { const main = document.querySelector('[data-testid="stMain"]');
  return main.scrollWidth <= main.clientWidth; }
"""
_HAS_THEME = """
(theme) => {
  const color = getComputedStyle(document.querySelector('[data-testid="stApp"]')).backgroundColor;
  const brightness = Math.max(...color.match(/\\d+/g).slice(0, 3).map(Number));
  return theme === (brightness > 128 ? "light" : "dark");
}
"""
_THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
_WIDE, _NARROW = ViewportSize(width=1280, height=1000), ViewportSize(width=800, height=1000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[str]]]:
    with serving_two_runs(tmp_path_factory.mktemp("data")) as served:
        yield served


def visit(page: Page, runs: tuple[Server, list[str]], address: str) -> None:
    """Open a page and wait until it is drawn."""
    server, (first, second) = runs
    page.goto(f"{server.url}/{address.format(a=first, b=second)}")
    expect(page.locator(_PAGES[address]).first).to_be_visible(timeout=120_000)
    expect(page.locator('[data-testid="stSkeleton"]')).to_have_count(0, timeout=120_000)


def violations(page: Page) -> list[str]:
    """What axe-core objects to, one line for each element."""
    found: list[dict[str, Any]] = Axe().run(page, options=_RULES).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:150]} ({node['failureSummary']})"
        for rule in found
        if rule["id"] not in _EXCEPTIONS
        for node in rule["nodes"]
    ]


def fits(page: Page) -> bool:
    """Whether the page, its charts drawn anew, needs no scrolling to the side."""
    try:
        page.wait_for_function(_FITS, timeout=30_000)
    except PlaywrightTimeoutError:
        return False
    return True


def use_theme(page: Page, theme: Literal["light", "dark"]) -> None:
    """Change the theme of the system, and wait until the page follows."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function(_HAS_THEME, arg=theme)


def test_every_page_meets_wcag_a_and_aa_in_both_themes_and_fits_a_narrow_window(
    chromium: Browser, runs: tuple[Server, list[str]]
) -> None:
    context = chromium.new_context(viewport=_WIDE, color_scheme="light", reduced_motion="reduce")
    page = context.new_page()
    wrong: list[str] = []
    for address in _PAGES:
        visit(page, runs, address)
        for opener in _CLICKS.get(address, ()):
            page.locator(opener).first.click()
        found = page.evaluate(_ESCAPED)
        for theme in _THEMES:
            use_theme(page, theme)
            found += [f"{theme}: {violation}" for violation in violations(page)]
        page.set_viewport_size(_NARROW)
        if not fits(page):
            found.append("it is wider than the window")
        page.set_viewport_size(_WIDE)
        use_theme(page, "light")
        wrong += [f"{address}: {what}" for what in found]
    context.close()
    assert not wrong, "\n".join(wrong)


def test_stars_and_boxes_obey_the_keyboard_and_tell_their_state(
    page: Page, runs: tuple[Server, list[str]]
) -> None:
    server, (first, _) = runs
    page.goto(f"{server.url}/features?id={first}&sort=index")
    star = page.get_by_role("button", name=f"Star feature {LABELED}", exact=True)
    expect(star).to_have_attribute("aria-pressed", "false")
    star.press("Enter")
    expect(star).to_have_attribute("aria-pressed", "true")
    box = page.get_by_role("checkbox", name=f"Select feature {LABELED}", exact=True)
    box.press("Space")
    expect(box).to_be_checked()
    expect(page.get_by_text("1 feature selected")).to_be_visible()
    page.get_by_role("combobox", name="Labels and stars").click()
    page.get_by_role("option", name="Starred").click()
    expect(page.locator("table.features tbody tr")).to_have_count(1)
    expect(page.locator("table.features")).to_contain_text(HOSTILE)
    assert "mark=starred" in page.url
