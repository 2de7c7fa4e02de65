"""The list of features and the page of one feature."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import parse_qs

import pytest

from backend import store
from tests.frontend.samples import ESCAPED, NASTY
from tests.frontend.views.test_pages import Open, address, opened, shown
from tests.frontend.workbench import Workbench


def test_the_features_link_to_the_pinned_snapshot(open_page: Open) -> None:
    text = shown(open_page("features", id="finished", snapshot="200", sort="index"))
    assert 'href="feature?id=finished&amp;index=0&amp;snapshot=200"' in text


def test_features_can_be_filtered_and_paged(open_page: Open) -> None:
    app = open_page("features", id="finished", state="dead", sort="index")
    assert "10 features" in shown(app)
    app = open_page("features", id="finished", sort="index")
    app.button(key="page-on").click().run()
    assert "index=50" in shown(app)
    assert "index=49&" not in shown(app)
    app.button(key="page-back").click().run()
    assert "index=49" in shown(app)


def test_a_page_of_a_list_says_which_features_it_shows(open_page: Open) -> None:
    app = open_page("features", id="finished", sort="index")
    assert "1–50 of 512" in shown(app)
    for places in ("51–100", "101–150"):
        app.button(key="page-on").click().run()
        assert f"{places} of 512" in shown(app)
    app.button(key="page-back").click().run()
    assert "51–100 of 512" in shown(app)
    shared = open_page("features", id="finished", sort="index", cursor=address(app, "cursor"))
    assert "of 512" not in shown(shared)  # the place of a cursor alone is not known


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"sort": "index", "order": "desc", "state": "alive"},
        {"sort": "max_activation", "q": "import", "max_density": "0.5"},
    ],
)
def test_next_and_previous_follow_the_list_that_led_to_a_feature(
    open_page: Open, query: dict[str, str]
) -> None:
    app = open_page("features", id="finished", **query)
    links = re.findall(r'class="wb-name" href="(feature[^"]+)"', shown(app))
    found = [int(parse_qs(unescape(link))["index"][0]) for link in links]
    assert found != sorted(found)
    app = opened(app, unescape(links[0]))
    assert app.button(key="left").disabled
    total = re.findall(r"1 of ([\d,]+) in the list", shown(app))
    assert len(total) == 1
    for place in (2, 3):
        app.button(key="right").click().run()
        assert address(app, "index") == str(found[place - 1])
        assert f"{place} of {total[0]} in the list" in shown(app)
    app.button(key="left").click().run()
    assert address(app, "index") == str(found[1])
    [back] = re.findall(r'href="(features[^"]+)">Features<', shown(app))
    assert parse_qs(unescape(back).partition("?")[2]) == {
        "id": ["finished"],
        "sort": ["clarity"],
        **{name: [value] for name, value in query.items()},
    }
    app.button(key="random").click().run()
    assert "sort" not in app.query_params


def test_the_last_feature_of_a_list_has_no_next_one(open_page: Open) -> None:
    found = open_page("features", id="finished", sort="index", order="desc")
    assert "index=511&amp;sort=index&amp;order=desc" in shown(found)
    app = open_page("feature", id="finished", index="0", sort="index", order="desc")
    assert "512 of 512 in the list" in shown(app)
    assert app.button(key="right").disabled
    app = open_page("feature", id="finished", index="11", sort="index", order="desc")
    app.button(key="right").click().run()
    assert address(app, "index") == "10"


def test_a_feature_that_is_not_in_the_list_says_so_and_steps_by_number(open_page: Open) -> None:
    app = open_page("feature", id="finished", index="5", sort="clarity", filter="no such word")
    assert "not found in the list" in shown(app)
    app.button(key="right").click().run()
    assert address(app, "index") == "6"


def test_arrows_walk_through_features_and_stop_at_the_ends(open_page: Open) -> None:
    app = open_page("feature", id="finished", index="0")
    assert app.button(key="left").disabled
    app.button(key="right").click().run()
    assert address(app, "index") == "1"
    assert "Feature 1<" in shown(app)
    app.number_input(key="url:index").set_value(511).run()
    assert "Feature 511<" in shown(app)
    assert app.button(key="right").disabled


def test_a_feature_shows_its_density_sections_and_folded_copies(open_page: Open) -> None:
    text = shown(open_page("feature", id="finished", index="4"))
    assert "0.320% (32 of 10,000 tokens)" in text
    assert "Activation 1.44–1.80 <small>(21.9% of firings)" in text
    assert "×3" in text
    assert text.count('class="wb-line"') == 20 + 5 * 5


def test_a_dead_feature_says_so(open_page: Open) -> None:
    text = shown(open_page("feature", id="finished", index="49"))
    assert "never fired in the 10,000 tokens" in text


def test_a_label_and_a_star_are_saved(open_page: Open, workbench: Workbench) -> None:
    app = open_page("feature", id="finished", index="5")
    app.text_input(key="label:finished:5").set_value("five").run()
    app.checkbox(key="star:finished:5").check().run()
    with workbench.services.database.reading() as session:
        kept = store.label(session, "finished", 5)
    assert (kept.label, kept.starred) == ("five", True)
    app = open_page("feature", id="finished", index="3")
    assert NASTY in app.text_input(key="label:finished:3").value


def test_what_another_tab_wrote_is_kept_and_shown(open_page: Open, workbench: Workbench) -> None:
    mine = open_page("feature", id="finished", index="5")
    theirs = open_page("feature", id="finished", index="5")
    theirs.text_input(key="label:finished:5").set_value("theirs").run()
    mine.checkbox(key="star:finished:5").check().run()
    assert mine.text_input(key="label:finished:5").value == "theirs"

    theirs.text_input(key="label:finished:5").set_value(NASTY).run()
    mine.text_input(key="label:finished:5").set_value("mine").run()
    assert f"is now “{ESCAPED}”, so “mine” was not saved" in shown(mine)
    assert mine.text_input(key="label:finished:5").value == NASTY
    theirs.text_area[0].set_value("a note").run()
    mine.text_area[0].set_value("my note").run()
    assert "were changed meanwhile, so these were not saved:" in shown(mine)
    with workbench.services.database.reading() as session:
        kept = store.label(session, "finished", 5)
    assert (kept.label, kept.notes, kept.starred) == (NASTY, "a note", True)

    mine.text_input(key="label:finished:5").set_value("mine").run()
    mine.text_area[0].set_value("a note and mine").run()
    with workbench.services.database.reading() as session:
        kept = store.label(session, "finished", 5)
    assert (kept.label, kept.notes, kept.starred) == ("mine", "a note and mine", True)


@pytest.mark.parametrize("index", ["512", "99999", "9" * 30])
def test_a_feature_that_the_run_does_not_have_is_not_replaced_by_another(
    open_page: Open, index: str
) -> None:
    app = open_page("feature", id="finished", index=index)
    assert not app.exception
    text = shown(app)
    assert f"There is no feature {index}: this run&#x27;s features are 0 to 511." in text
    assert "Top tokens" not in text


def test_the_star_of_a_feature_is_filled_once_it_is_starred(open_page: Open) -> None:
    app = open_page("feature", id="finished", index="5")
    [star] = app.checkbox
    assert star.label == "☆ Star"
    star.check().run()
    assert app.checkbox[0].label == "★ Star"
    assert app.checkbox[0].value
    app.checkbox[0].uncheck().run()
    assert app.checkbox[0].label == "☆ Star"


def test_a_label_that_could_not_be_saved_is_reported(open_page: Open, workbench: Workbench) -> None:
    app = open_page("feature", id="finished", index="5")
    workbench.is_down = True
    app.text_input(key="label:finished:5").set_value("five").run()
    assert not app.exception
    assert "answered 503" in shown(app)


def test_what_could_not_be_saved_is_saved_with_the_next_change(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("feature", id="finished", index="5")
    app.text_area[0].set_value("n" * 20_001).run()
    app.text_input(key="label:finished:5").set_value("five").run()
    with workbench.services.database.reading() as session:
        assert store.label(session, "finished", 5).label == ""
    app.text_area[0].set_value("short").run()
    with workbench.services.database.reading() as session:
        kept = store.label(session, "finished", 5)
    assert (kept.label, kept.notes) == ("five", "short")
