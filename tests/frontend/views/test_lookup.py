"""The lookup of texts, and the steps among its features, run without a browser."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from frontend.features.hits import Lookup
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from tests.frontend.indexes import FINAL_STEP
from tests.frontend.views.test_pages import Open, address, shown


@pytest.fixture
def index(indexes: Path) -> FeatureIndex:
    return FeatureIndex.open(RunFolder(indexes / "a").feature_index(FINAL_STEP))


def test_a_text_is_counted_wherever_it_stands_and_shown_in_context(
    open_page: Open, index: FeatureIndex
) -> None:
    rows = [
        "".join(index.vocabulary.window(row)) for row in index.arrays.token_ids.reshape(100, -1)
    ]
    times = sum(row.count("__init__(") for row in rows)
    assert times > 5
    text = shown(open_page("lookup", id="finished", q="__init__("))
    assert f"</span> <b>{times} times</b>, ending in" in text
    assert text.count('class="wb-line plain"') == 5
    assert "Feature" in text


def test_a_token_that_is_also_part_of_others_leads_to_its_text(open_page: Open) -> None:
    text = shown(open_page("lookup", id="finished", q="ar"))
    assert "<b>416 times</b>" in text  # in " args"
    text = shown(open_page("lookup", id="finished", q="import"))
    assert "840 occurrences" in text
    assert "The text contains" not in text
    text = shown(open_page("lookup", id="finished", q="."))
    assert "match=text" not in text


@pytest.mark.parametrize(
    ("query", "pattern", "flags"),
    [
        ({"q": " *"}, r"\*", re.IGNORECASE),  # also ends " *bold*", without a space
        ({"q": "Value"}, "value", re.IGNORECASE),
        ({"q": " value "}, "value", re.IGNORECASE),
        ({"q": "import", "match": "exact"}, "import", 0),
        ({"q": " *", "match": "exact"}, r" \*", 0),
    ],
)
def test_the_link_to_all_occurrences_finds_as_many_as_it_promises(
    open_page: Open, index: FeatureIndex, query: dict[str, str], pattern: str, flags: int
) -> None:
    rows = ["".join(index.vocabulary.window(r)) for r in index.arrays.token_ids.reshape(100, -1)]
    times = sum(len(re.findall(pattern, row, flags)) for row in rows)
    text = shown(open_page("lookup", id="finished", **query))
    assert f"<b>{times:,} times</b>" in text
    [target] = re.findall(r'href="lookup\?([^"]+)">Show features for all occurrences', text)
    linked = dict(parse_qsl(html.unescape(target)))
    assert f"<b>{times:,} times</b>" in shown(open_page("lookup", **linked))


@pytest.mark.parametrize(
    ("lookup", "text", "exact_case"),
    [
        (Lookup(" import"), "import", False),
        (Lookup(" Import ", exact_case=True), "Import", True),
        (Lookup(" import", "exact"), " import", True),
        (Lookup("   "), "   ", False),
    ],
)
def test_all_occurrences_are_those_with_the_same_case_and_spaces(
    lookup: Lookup, text: str, exact_case: bool
) -> None:
    assert lookup.in_text == Lookup(text, "text", exact_case=exact_case)


def test_a_bad_expression_is_a_notice(open_page: Open) -> None:
    app = open_page("lookup", id="finished", q="(", match="regex")
    assert not app.exception
    assert "is not a valid RE2 expression" in shown(app)
    app = open_page("lookup", id="finished", q=r"__\w+__\W", match="regex")
    assert "matches <b>" in shown(app)


def test_the_options_of_a_lookup_are_part_of_its_address(open_page: Open) -> None:
    app = open_page("lookup", id="finished", q="Import")
    app.number_input(key="url:min_count").set_value(270).run()
    app.toggle(key="url:exact_case").set_value(True).run()
    assert address(app, "min_count") == "270"
    assert address(app, "exact_case") == "True"
    assert "does not occur in the" in shown(app)
    app.toggle(key="url:exact_case").set_value(False).run()
    text = shown(app)
    assert "exact_case" not in app.query_params
    assert "index=504&amp;q=Import&amp;min_count=270" in text
    assert "index=1&amp;" not in text  # fires 30 times


def hits(text: str) -> list[int]:
    return [
        int(n)
        for n in re.findall(r'class="wb-name" href="feature\?id=finished&amp;index=(\d+)', text)
    ]


def test_next_and_previous_go_to_the_next_and_previous_feature_of_a_lookup(
    open_page: Open,
) -> None:
    found = hits(shown(open_page("lookup", id="finished", q="import", rank="max")))
    app = open_page("feature", id="finished", index=str(found[0]), q="import", rank="max")
    assert app.button(key="left").disabled
    for place in (2, 3):
        app.button(key="right").click().run()
        assert address(app, "index") == str(found[place - 1])
        assert f"{place} of {len(found)} for <span" in shown(app)
    app.button(key="left").click().run()
    assert address(app, "index") == str(found[1])
    assert 'href="lookup?id=finished&amp;q=import&amp;rank=max"' in shown(app)
    app = open_page("feature", id="finished", index=str(found[-1]), q="import", rank="max")
    assert app.button(key="right").disabled


def test_another_feature_than_those_of_the_lookup_says_so_and_steps_by_number(
    open_page: Open,
) -> None:
    app = open_page("feature", id="finished", index="7", q="import")
    assert "not among the features for" in shown(app)
    app.button(key="right").click().run()
    assert address(app, "index") == "8"
    app.number_input(key="url:index").set_value(9).run()
    assert "q" not in app.query_params
    assert "not among" not in shown(app)


@pytest.mark.parametrize("query", [{"match": "regex"}, {"min_count": "0"}, {"rank": "nonsense"}])
def test_odd_lookups_in_the_address_of_a_feature_do_no_harm(
    open_page: Open, query: dict[str, str]
) -> None:
    app = open_page("feature", id="finished", index="7", q="(", **query)
    assert not app.exception
    assert "Feature 7<" in shown(app)
