"""Exported pages open from a disk, without a server and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import export_features
from sae_engine.features.index.reader import FeatureIndex
from tests.house.repository import ROOT
from tests.sae_engine.features.export_case import BY_MODEL, label, source

HOSTILE = '<img src=x onerror="window.harmed = true"></script><script>window.harmed = true'


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportSource]:
    folder = tmp_path_factory.mktemp("exported")
    written = [label(2, HOSTILE, BY_MODEL, notes=HOSTILE), label(3, "third", BY_MODEL)]
    made, _ = source(folder, *written, name=HOSTILE)
    made = replace(made, style=(ROOT / "frontend/style.css").read_text("utf-8"))
    export_features(made, "html", folder / "out")
    return folder / "out/index.html", made


@pytest.fixture
def opened(page: Page, exported: tuple[Path, ExportSource]) -> Iterator[Page]:
    """The exported list, opened from the disk without a network; nothing but files is asked for."""
    asked: list[str] = []
    page.context.set_offline(True)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(exported[0].as_uri())
    yield page
    assert [url for url in asked if not url.startswith("file://")] == []
    assert page.evaluate("window.harmed") is None


def indexes(page: Page) -> list[int]:
    return [int(text) for text in page.locator("table.wb-table a.wb-name").all_inner_texts()]


def test_the_list_is_sorted_and_filtered_as_in_the_app(
    opened: Page, exported: tuple[Path, ExportSource]
) -> None:
    index: FeatureIndex = exported[1].index
    labels = exported[1].texts
    expect(opened.locator("h1")).to_have_text(HOSTILE)
    rows = opened.locator("table.features tbody tr")
    expect(rows).to_have_count(len(exported[1].chosen))

    def answered(**query: object) -> list[int]:
        page = index.features(labels=labels, limit=500, **query)  # pyright: ignore[reportArgumentType]
        return [row.index for row in page.items if row.state != "dead"]

    assert indexes(opened) == answered(sort="max_activation")
    opened.get_by_role("link", name="Density").click()
    expect(opened.get_by_role("link", name="Density ↓")).to_be_visible()
    assert indexes(opened) == answered(sort="density")
    opened.get_by_role("link", name="Label").click()
    expect(opened.get_by_role("link", name="Label ↑")).to_be_visible()
    assert indexes(opened) == answered(sort="label", order="asc")
    for query in ("third", "#7", "cat", "CA"):
        opened.get_by_placeholder("Label, token or #index").fill(query)
        opened.keyboard.press("Enter")
        wanted = answered(sort="label", order="asc", q=query)
        expect(opened.locator(".wb-bar")).to_contain_text([f"{len(wanted)} feature", "page"])
        assert indexes(opened) == wanted


def test_a_feature_shows_its_contexts_and_leads_to_the_next(
    opened: Page, exported: tuple[Path, ExportSource]
) -> None:
    opened.goto(exported[0].as_uri() + "#/feature/2")
    expect(opened.get_by_role("heading", name="Feature 2", exact=True)).to_be_visible()
    expect(opened.locator(".wb-label")).to_have_text(HOSTILE)
    expect(opened.get_by_text("recall 50.0%")).to_be_visible()
    detail = exported[1].index.feature(2)
    shown = opened.locator(".wb-contexts .wb-line")
    number = len(detail.contexts) + sum(len(interval.contexts) for interval in detail.intervals)
    expect(shown).to_have_count(number)
    expect(opened.locator(".wb-logit.positive")).to_have_count(8)
    expect(opened.locator(".wb-bars rect")).to_have_count(len(detail.histogram.counts))
    following = exported[1].chosen[exported[1].chosen.index(2) + 1]
    opened.keyboard.press("ArrowRight")
    expect(opened.get_by_role("heading", name=f"Feature {following}", exact=True)).to_be_visible()
    opened.go_back()
    expect(opened.get_by_role("heading", name="Feature 2", exact=True)).to_be_visible()


def test_a_lookup_leads_from_a_token_to_its_features(
    opened: Page, exported: tuple[Path, ExportSource]
) -> None:
    index = exported[1].index
    token = next(t for t in index.feature(exported[1].chosen[0]).top_tokens)
    found = index.lookup(token.text, min_count=1, limit=30)
    opened.keyboard.press("/")
    opened.keyboard.type(token.text)
    opened.keyboard.press("Enter")
    expect(opened.locator("table.lookup tbody tr")).to_have_count(len(found.features))
    assert indexes(opened) == [feature.index for feature in found.features]
    opened.goto(exported[0].as_uri() + "#/lookup?q=zebra")
    expect(opened.locator(".wb-notice")).to_contain_text("The token “zebra” does not occur")


def test_features_left_out_of_the_export_are_mentioned(
    opened: Page, exported: tuple[Path, ExportSource]
) -> None:
    expect(opened.get_by_text("never fired in the 200 tokens")).to_be_visible()
    dead = next(i for i in range(30) if i not in exported[1].chosen)
    opened.goto(exported[0].as_uri() + f"#/feature/{dead}")
    expect(opened.locator(".wb-notice")).to_contain_text("it never fired")
    opened.goto(exported[0].as_uri() + "#/feature/999")
    expect(opened.locator(".wb-notice")).to_contain_text("features 0 to 29")
