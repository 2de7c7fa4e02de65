"""Many features at a glance and two runs side by side, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.server import Server
from tests.browser.two_runs import D_SAE, HOSTILE, LABELED, serving_two_runs

pytestmark = pytest.mark.timeout(600)

_COMPUTED_MS = 180_000
# Where the map's only marked point is on the page; drawn by WebGL it is no element.
_MARKED_POINT = """
() => {
  const plot = document.querySelector(".st-key-map .js-plotly-plot");
  const layout = plot?._fullLayout, marked = plot?.data?.[1];
  if (marked?.x?.length !== 1 || !layout?.xaxis?.l2p) return null;
  const { left, top } = plot.getBoundingClientRect(), { xaxis, yaxis, _size } = layout;
  return [left + _size.l + xaxis.l2p(marked.x[0]), top + _size.t + yaxis.l2p(marked.y[0])];
}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[str]]]:
    with serving_two_runs(tmp_path_factory.mktemp("data")) as served:
        yield served


def query(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def num_rows(page: Page) -> Locator:
    return page.locator("table.features tbody tr")


def middle(mark: Locator) -> tuple[float, float]:
    box = mark.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_bar_or_a_stretch_of_the_histogram_filters_the_list(
    page: Page, runs: tuple[Server, list[str]]
) -> None:
    server, (run_id, _) = runs
    page.goto(f"{server.url}/features?id={run_id}&sort=index")
    expect(num_rows(page)).to_have_count(D_SAE)
    bars = page.locator(".st-key-densities .bars .point path")
    expect(bars.first).to_be_attached()
    heights = [(bar.bounding_box() or {"height": 0})["height"] for bar in bars.all()]
    page.mouse.click(*middle(bars.nth(heights.index(max(heights)))))
    page.wait_for_url(re.compile("min_density"))
    low, high = (float(query(page)[name]) for name in ("min_density", "max_density"))
    assert 0 < low < high <= 1
    assert query(page)["sort"] == "index"
    expect(num_rows(page)).not_to_have_count(D_SAE)
    from_box = page.get_by_label("Min density in percent")
    assert float(from_box.input_value()) == pytest.approx(100 * low)

    plot = page.locator(".st-key-densities .nsewdrag").bounding_box()
    assert plot is not None
    page.mouse.move(plot["x"] + 2, plot["y"] + plot["height"] / 2)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2, steps=5)
    page.mouse.move(plot["x"] + plot["width"] - 2, plot["y"] + plot["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_url(lambda url: float(parse_qs(urlsplit(url).query)["max_density"][0]) > 0.9)
    assert float(query(page)["min_density"]) < low

    expect(from_box).not_to_have_value(f"{100 * low:g}")  # the page is drawn anew
    from_box.fill("")
    from_box.press("Enter")
    page.wait_for_url(lambda url: "min_density" not in url)


def test_a_point_of_the_map_shows_what_it_is_as_text_and_opens_its_feature(
    page: Page, runs: tuple[Server, list[str]]
) -> None:
    server, (run_id, _) = runs
    page.goto(f"{server.url}/map?id={run_id}&q=script")
    expect(page.get_by_text("1 feature found")).to_be_visible(timeout=_COMPUTED_MS)
    marked = page.wait_for_function(_MARKED_POINT).json_value()
    page.mouse.move(*marked)
    expect(page.locator(".hoverlayer")).to_contain_text(HOSTILE)
    page.mouse.click(*marked)
    expect(page.get_by_role("heading", name=f"Feature {LABELED}", exact=True)).to_be_visible()
    assert page.evaluate("window.harmed") is None


def test_two_runs_are_chosen_compared_and_lead_to_their_features(
    page: Page, runs: tuple[Server, list[str]]
) -> None:
    server, (first, second) = runs
    page.goto(server.url)
    for name in ("first", "second"):
        page.locator("table.runs tr", has_text=name).locator(".wb-check").click()
    expect(page.locator(".wb-views")).to_contain_text("2 selected")
    compare = page.get_by_role("link", name="Compare")
    expect(compare).to_have_attribute("href", re.compile(f"{first}.*{second}"))  # one run: disabled
    compare.click()
    expect(page.locator("tr", has_text="sae.k").first).to_contain_text("45")
    expect(page.locator(".wb-key .wb-keyed").first).to_have_text("first")
    assert query(page)["runs"] == f"{first},{second}"

    page.get_by_role("link", name="Features", exact=True).click()
    matches = page.locator("table.matches tbody tr")
    expect(matches.first).to_contain_text("1.000", timeout=_COMPUTED_MS)
    expect(page.locator("table.matches")).to_contain_text(HOSTILE)
    assert page.evaluate("window.harmed") is None
    matches.first.locator("a.wb-feature").last.click()
    page.wait_for_url(re.compile(f"/feature.*id={second}"))
    page.go_back()
    expect(matches.first).to_contain_text("1.000")

    page.get_by_role("link", name="Tokens", exact=True).click()
    box = page.get_by_role("textbox", name="Look up")  # not what stood there before
    box.fill("a")
    box.press("Enter")
    expect(page.locator("h3.wb-panel")).to_have_count(2)
    expect(page.locator(".wb-matched")).to_have_count(2)


def test_nothing_is_written_over_what_is_typed(page: Page, runs: tuple[Server, list[str]]) -> None:
    server, (run_id, _) = runs
    page.goto(f"{server.url}/feature?id={run_id}&index=1")
    for name, text in (("Label", "a label that fills the box"), ("Notes", "one\ntwo\nthree")):
        box = page.get_by_role("textbox", name=name)
        box.fill(text)
        hint = page.get_by_test_id("InputInstructions")
        expect(hint).to_have_count(1)
        expect(hint).to_be_hidden()
        box.blur()
        expect(hint).to_have_count(0)


def test_the_controls_of_a_row_stand_on_one_line(
    page: Page, runs: tuple[Server, list[str]]
) -> None:
    server, (run_id, _) = runs
    page.goto(f"{server.url}/lookup?id={run_id}&q=a")
    text = page.get_by_role("textbox", name="Look up")
    count = page.get_by_role("spinbutton", name="Minimum count")
    for box, choice in ((text, "F1"), (count, "Tokens starting with")):
        button = page.get_by_role("radio", name=choice)
        expect(button).to_be_visible()
        assert abs(middle(box)[1] - middle(button)[1]) < 1.5, choice
    labels = page.get_by_test_id("stWidgetLabel")
    titles = [labels.get_by_text(name, exact=True) for name in ("Look up", "Rank by")]
    one, other = (middle(title.first)[1] for title in titles)
    assert abs(one - other) < 1.5
