"""Addresses that name what does not exist, and boxes with what they cannot take."""

from __future__ import annotations

import pytest

from tests.frontend.views.test_pages import Open, address, shown
from tests.frontend.workbench import Workbench

TEXT = "import os\nimport sys"


@pytest.mark.parametrize("index", ["-1", "abc", "1.5", "9" * 5000])
def test_an_index_that_no_feature_has_shows_no_feature(open_page: Open, index: str) -> None:
    app = open_page("feature", id="finished", index=index)
    assert not app.exception
    text = shown(app)
    assert f"There is no feature {index[:40]}: this run&#x27;s features are 0 to 511." in text
    assert "Top tokens" not in text
    assert [e.proto.label for e in app.get("page_link")] == ["Browse features"]


@pytest.mark.parametrize("query", [{"index": ""}, {}])
def test_an_address_without_an_index_shows_no_feature(
    open_page: Open, query: dict[str, str]
) -> None:
    text = shown(open_page("feature", id="finished", **query))
    assert "This address names no feature: this run&#x27;s features are 0 to 511." in text


@pytest.mark.parametrize(
    ("page", "snapshot"),
    [
        ("features", "999"),
        ("feature", "-200"),
        ("map", "x"),
        ("lookup", "2e2"),
        ("playground", "1"),
    ],
)
def test_a_snapshot_that_the_run_does_not_have_is_not_replaced_by_the_latest(
    open_page: Open, page: str, snapshot: str
) -> None:
    app = open_page(page, id="finished", index="3", q="import", snapshot=snapshot)
    assert not app.exception
    text = shown(app)
    assert f"This run has no snapshot at step {snapshot}." in text
    assert 'data-set="snapshot=200"' in text
    assert "Strongest example" not in text


@pytest.mark.parametrize(
    ("page", "query", "problem"),
    [
        ("features", {"state": "alve"}, "state=alve in the address is none of alive, dead, dense."),
        ("features", {"sort": "size"}, "sort=size in the address is none of"),
        ("lookup", {"q": "import", "rank": "best"}, "rank=best in the address is none of"),
        ("feature", {"index": "3", "view": "all"}, "view=all in the address is none of"),
        ("lookup", {"q": "import", "min_count": "few"}, "Minimum count must be a whole number"),
        ("playground", {"text": TEXT, "token": "99"}, "There is no token 99: this text has"),
        ("playground", {"text": TEXT, "token": "-1"}, "There is no token -1: this text has"),
        ("playground", {"text": TEXT, "lock": "9999"}, "There is no feature 9999: this run"),
        ("playground", {"text": TEXT, "lock": "x"}, "There is no feature x: this run"),
        ("playground", {"steer": "3:99"}, "Left out of the steering: 3:99."),
        ("playground", {"temp": "hot"}, "Temperature must be a number from 0 to 2 (this is hot)."),
        ("features", {"cursor": "!!!"}, "This page of the list does not exist."),
        ("features", {"cursor": "ZmVhdHVyZXM6OTk5OTk="}, "This page of the list does not exist."),
    ],
)
def test_a_wrong_value_of_an_address_is_named(
    open_page: Open, page: str, query: dict[str, str], problem: str
) -> None:
    app = open_page(page, id="finished", **query)
    assert not app.exception
    assert problem in shown(app)


def test_a_page_without_a_run_asks_for_one(open_page: Open) -> None:
    app = open_page("features")
    assert "Choose a run" in shown(app)
    assert [e.proto.label for e in app.get("page_link")] == ["Show all runs"]


@pytest.mark.parametrize(
    ("page", "query", "box", "most", "name"),
    [
        ("playground", {}, "url:text", 4000, "text"),
        ("playground", {"steer": "3:1"}, "url:prompt", 4000, "prompt"),
        ("feature", {"index": "10"}, "url:own", 2000, "own"),
    ],
)
def test_a_text_that_is_too_long_stays_in_its_box_and_is_not_sent(
    open_page: Open,
    workbench: Workbench,
    page: str,
    query: dict[str, str],
    box: str,
    most: int,
    name: str,
) -> None:
    app = open_page(page, id="finished", **query)
    app.text_area(key=box).set_value("x" * 30_000).run()
    assert not app.exception
    assert f"At most {most:,} characters (this has 30,000)." in shown(app)
    assert app.text_area(key=box).value == "x" * 30_000
    assert name not in app.query_params
    app.text_area(key=box).set_value("short").run()
    assert "At most" not in shown(app)
    assert address(app, name) == "short"
    assert all(
        body["text"] == "short" for body in workbench.posted("/api/runs/finished/activations")
    )


@pytest.mark.parametrize(
    ("page", "most"), [("lookup", 500), ("features", 200), ("map", 200), ("compare", 500)]
)
def test_a_line_that_is_too_long_is_not_searched_for(open_page: Open, page: str, most: int) -> None:
    query = {"runs": "finished,failed", "part": "tokens"} if page == "compare" else {}
    app = open_page(page, id="finished", q="y" * (most + 1), **query)
    assert not app.exception
    problem = f"At most {most} characters (this has {most + 1})."
    assert problem in shown(app)
    app.text_input(key="url:q").set_value("z" * (most + 2)).run()
    assert f"(this has {most + 2})" in shown(app)
    app.text_input(key="url:q").set_value("import").run()
    assert "At most" not in shown(app)


def test_a_label_that_is_too_long_is_not_saved_and_says_so(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("feature", id="finished", index="5")
    app.text_input(key="label:finished:5").set_value("l" * 501).run()
    assert "Label, not saved: At most 500 characters (this has 501)." in shown(app)
    assert workbench.client.feature("finished", 5).label is None
    app.text_input(key="label:finished:5").set_value("l" * 500).run()
    assert "not saved" not in shown(app)
    assert workbench.client.feature("finished", 5).label == "l" * 500


def test_a_seed_below_zero_is_not_replaced_by_another(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("playground", id="finished", steer="3:1", prompt="import ")
    app.number_input(key="url:seed").set_value(-5).run()
    assert "Seed must be a whole number" in shown(app)
    assert app.number_input(key="url:seed").value == -5
    assert app.button(key="generate").disabled
    app.number_input(key="url:seed").set_value(7).run()
    app.button(key="generate").click().run()
    assert [body["seed"] for body in workbench.posted("/api/runs/finished/steer")] == [7]


def test_steering_adds_no_feature_that_does_not_exist(open_page: Open) -> None:
    app = open_page("playground", id="finished")
    app.number_input(key="steer-add").set_value(512).run()
    assert "The index must be a whole number from 0 to 511 (this is 512)." in shown(app)
    assert "steer" not in app.query_params


def test_adding_a_feature_again_keeps_its_strength(open_page: Open) -> None:
    app = open_page("playground", id="finished", steer="7:3,8:1")
    for index in (7, 8):
        app.number_input(key="steer-add").set_value(index).run()
    assert address(app, "steer") == "7:3,8:1"


@pytest.mark.parametrize(
    ("box", "percent", "problem"),
    [
        ("min_density", 200.0, "Min density in percent must be a number from 0 to 100"),
        ("max_density", -1.0, "Max density in percent must be a number from 0 to 100"),
        ("max_density", 1.0, "The minimum density (5%) exceeds the maximum (1%)."),
    ],
)
def test_bounds_of_the_density_that_cannot_be_are_named_and_can_be_cleared(
    open_page: Open, box: str, percent: float, problem: str
) -> None:
    app = open_page("features", id="finished", min_density="0.05")
    app.number_input(key=f"percent:{box}").set_value(percent).run()
    text = shown(app)
    assert problem in text
    assert "Strongest example" not in text
    app.button(key="clear").click().run()
    assert "Strongest example" in shown(app)
    assert not {"min_density", "max_density"} & set(app.query_params)


def test_an_empty_list_offers_to_clear_its_filters(open_page: Open) -> None:
    app = open_page("features", id="finished", q="no such word", state="dense")
    assert "No matching features" in shown(app)
    app.button(key="clear").click().run()
    assert "512 features" in shown(app)
