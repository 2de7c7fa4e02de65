"""Your own text on the playground and on a feature's page, and steering."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from html import unescape
from typing import Any
from urllib.parse import parse_qs

import pytest

from frontend.features.steering_example import MOST_TRIED
from frontend.features.token_chips import (
    colored_text,
    strengths_of,
    strengths_text,
    strongest_features,
    token_chips,
)
from frontend.html.tokens import opacity
from sae_engine.schema.playground import (
    FeatureActivation,
    ReadToken,
    TextActivations,
    WatchedFeature,
)
from tests.backend.conftest import wait_for
from tests.frontend.fake_model import BOS
from tests.frontend.samples import ESCAPED, NASTY
from tests.frontend.views.test_pages import Open, address, shown
from tests.frontend.workbench import Workbench

TEXT = "import os\nimport sys"


def token(text: str, total: float, features: dict[int, float]) -> ReadToken:
    listed = [FeatureActivation(index=i, activation=a) for i, a in features.items()]
    return ReadToken(
        id=5, text=text, excluded=None, num_active=len(listed), total=total, features=listed
    )


def answer(tokens: Sequence[ReadToken], watched: Sequence[float] = ()) -> TextActivations:
    features = [WatchedFeature(index=1, max_activation=9, activations=list(watched))]
    return TextActivations(
        tokens=list(tokens), features=features if watched else [], labels={}, starred=[], snapshot=1
    )


def readings(workbench: Workbench) -> list[dict[str, Any]]:
    """Bodies of all requests to read a text."""
    return workbench.posted("/api/runs/finished/activations")


def steerings(workbench: Workbench) -> list[dict[str, Any]]:
    """Bodies of all requests to steer."""
    return workbench.posted("/api/runs/finished/steer")


def changes(html: str, label: str) -> list[dict[str, list[str]]]:
    """The address changes made by the links with a label."""
    found = re.findall(rf'data-set="([^"]*)"[^>]*>(?:<b[^>]*>)?{re.escape(label)}<', html)
    return [parse_qs(unescape(query), keep_blank_values=True) for query in found]


def test_strengths_survive_the_address_and_nonsense_is_dropped() -> None:
    strengths = {12: 1.5, 7: -2.0, 0: 10.0}
    assert strengths_of(strengths_text(strengths)) == strengths
    assert strengths_of("1:2,x:3,4:,5:y,-6:1,7:nan,8:inf,9:11,,10:3:4") == {1: 2.0}


def test_the_strongest_features_of_a_text_are_each_listed_once_where_they_are_strongest() -> None:
    tokens = [BOS, token("a", 3, {1: 2.0, 2: 1.0}), token("b", 9, {1: 5.0, 3: 4.0})]
    found = strongest_features(answer(tokens), 2)
    assert [(f.feature, f.activation, f.place) for f in found] == [(1, 5.0, 2), (3, 4.0, 2)]


def test_chips_are_colored_by_the_locked_feature_relative_to_its_maximum_in_the_text() -> None:
    tokens = [BOS, token("a", 3, {}), token("b", 9, {}), token("c", 9, {})]
    html = token_chips(answer(tokens, [0, 1, 4, 0]), chosen=None)
    strengths = re.findall(r"--o:([\d.]+)", html)
    assert strengths == [f"{opacity(v, 4):.2f}" for v in (1, 4, 0)] == ["0.54", "1.00", "0.00"]


def test_without_a_locked_feature_chips_are_colored_by_their_total_above_the_smallest() -> None:
    tokens = [BOS, token("a", 50, {}), token("b", 60, {}), token("c", 70, {})]
    strengths = re.findall(r"--o:([\d.]+)", token_chips(answer(tokens), chosen=None))
    assert strengths == ["0.00", f"{opacity(10, 20):.2f}", "1.00"]


def test_a_chip_shows_its_value_and_selects_its_token_and_the_selected_one_deselects_it() -> None:
    tokens = [BOS, token("a", 3, {}), token('"><script>', 9, {})]
    html = token_chips(answer(tokens), chosen=1)
    assert changes(html, "a") == [{"token": [""]}]
    assert changes(html, "&quot;&gt;&lt;script&gt;") == [{"token": ["2"]}]
    assert "<script" not in html
    assert 'class="wb-token on"' in html


def test_an_excluded_position_says_so_and_leads_nowhere() -> None:
    html = token_chips(answer([BOS, token("a", 3, {})]), chosen=None)
    assert re.search(r'<span class="wb-token out" title="BOS: .*no features">&lt;bos&gt;<', html)


def test_an_outlier_says_so_and_stays_part_of_the_text() -> None:
    sink = ReadToken(id=3, text="sink", excluded="outlier", num_active=0, total=0.0, features=[])
    tokens = [BOS, sink, token("a", 3, {})]
    html = token_chips(answer(tokens), chosen=None)
    assert re.search(r'<span class="wb-token out" title="outlier: .*no features">sink<', html)
    for values in ([0.0, 0.0, 2.5], [0.0, 0.0, 0.0]):
        text = colored_text(answer(tokens, values))
        assert "sink" in text
        assert "bos" not in text


def test_without_a_text_the_page_offers_some(open_page: Open) -> None:
    text = shown(open_page("playground", id="finished"))
    assert "Which features fire on your text?" in text
    assert 'href="playground?id=finished&amp;text=import+numpy' in text


def test_a_text_shows_its_tokens_and_strongest_features(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("playground", id="finished", snapshot="100", text=TEXT)
    text = shown(app)
    assert changes(text, "import") == [{"token": ["1"]}]
    assert "4 tokens, colored by the sum" in text
    assert 'href="feature?id=finished&amp;index=10&amp;snapshot=100"' in text
    assert ESCAPED in text  # the label of feature 3
    assert [body["text"] for body in readings(workbench)] == [TEXT]


def test_a_chosen_token_shows_its_own_features(open_page: Open) -> None:
    text = shown(open_page("playground", id="finished", text=TEXT, token="2"))
    assert "token 2: 1 feature active" in text
    assert "index=10" not in text
    text = shown(open_page("playground", id="finished", text=TEXT, token="99"))
    assert "Strongest" in text


def test_a_locked_feature_colors_the_text_and_can_be_unlocked(
    open_page: Open, workbench: Workbench
) -> None:
    text = shown(open_page("playground", id="finished", text=TEXT, lock="10"))
    assert readings(workbench)[-1]["features"] == [10]
    assert "max 7.50 here, 3.00 in the index" in text
    assert {"lock": [""]} in changes(text, "highlighted")
    assert {"lock": ["3"]} in changes(text, "highlight")


def test_a_new_text_is_read_and_the_chosen_token_forgotten(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("playground", id="finished", text=TEXT, token="2")
    app.text_area(key="url:text").set_value("another text").run()
    assert address(app, "text") == "another text"
    assert "token" not in app.query_params
    assert [body["text"] for body in readings(workbench)] == [TEXT, "another text"]


def test_the_same_question_is_asked_once(open_page: Open, workbench: Workbench) -> None:
    app = open_page("playground", id="finished", text=TEXT)
    app.run()
    app.query_params["token"] = "1"
    app.run()
    assert len(readings(workbench)) == 1


def test_a_refused_text_shows_why(open_page: Open) -> None:
    app = open_page("playground", id="finished", text="refuse this")
    assert not app.exception
    assert "The text is invalid; give another." in shown(app)
    assert app.text_area(key="url:prompt").value == "refuse this"


def test_a_locked_feature_that_does_not_exist_is_ignored(
    open_page: Open, workbench: Workbench
) -> None:
    open_page("playground", id="finished", text=TEXT, lock="99999")
    assert readings(workbench)[-1]["features"] == []


def test_a_reading_waits_until_the_language_model_is_loaded(
    open_page: Open, workbench: Workbench
) -> None:
    gate = workbench.settings.data_dir / "gate"

    def load_once_the_page_has_asked() -> None:
        wait_for(lambda: workbench.num_requests("/inference") > 0)
        gate.touch()

    loading = threading.Thread(target=load_once_the_page_has_asked)
    loading.start()
    assert "2 tokens" in shown(open_page("playground", id="finished", text=f"load {gate}"))
    loading.join()


def test_steering_sends_the_values_of_the_address_and_shows_both_texts(
    open_page: Open, workbench: Workbench
) -> None:
    query = {"steer": "3:1.5,10:-2", "prompt": "import ", "seed": "4", "max": "25", "temp": "0.5"}
    app = open_page("playground", id="finished", snapshot="100", **query)
    assert steerings(workbench) == []
    app.button(key="generate").click().run()
    [asked] = steerings(workbench)
    assert asked == {
        "prompt": "import ",
        "features": [{"index": 3, "strength": 1.5}, {"index": 10, "strength": -2}],
        "seed": 4,
        "max_new_tokens": 25,
        "temperature": 0.5,
    }
    text = shown(app)
    assert "plain0 plain1" in text
    assert ESCAPED + "1" in text
    assert NASTY not in text
    assert address(app, "go") == "1"
    app.run()
    assert len(steerings(workbench)) == 1


def test_a_shared_address_generates_again(open_page: Open, workbench: Workbench) -> None:
    query = {"steer": "3:1", "prompt": "import ", "go": "1"}
    assert "plain0 plain1" in shown(open_page("playground", id="finished", **query))
    assert len(steerings(workbench)) == 1


def test_a_changed_strength_waits_for_another_press(open_page: Open, workbench: Workbench) -> None:
    app = open_page("playground", id="finished", steer="3:1,10:2", prompt="import ", go="1")
    app.slider(key="strength:3").set_value(2.5).run()
    assert address(app, "steer") == "3:2.5,10:2"
    assert "go" not in app.query_params
    assert len(steerings(workbench)) == 1
    app.button(key="unsteer:3").click().run()
    assert address(app, "steer") == "10:2"
    app.number_input(key="steer-add").set_value(7).run()
    assert address(app, "steer") == "10:2,7:0.75"


def test_nothing_can_be_generated_without_features_or_a_prompt(open_page: Open) -> None:
    for query in ({"prompt": "import "}, {"steer": "3:1"}):
        app = open_page("playground", id="finished", **query)
        assert app.button(key="generate").disabled


def test_an_example_steers_with_a_feature_of_one_word_a_text_without_that_word(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("playground", id="finished")
    app.button(key="steer-example").click().run()
    assert 1 < len(steerings(workbench)) <= MOST_TRIED  # this model's texts show no effect
    asked = steerings(workbench)[0]
    [steered] = asked["features"]
    assert (steered["strength"], asked["temperature"]) == (0.75, 0.5)
    feature = workbench.client.feature("finished", steered["index"])
    word = feature.top_tokens[0].text.strip()
    assert word.isalpha()
    assert asked["prompt"] == address(app, "prompt") == "The"
    assert address(app, "steer") == f"{feature.index}:0.75"
    assert 'class="wb-generated steered"' in shown(app)
    about = feature.name or feature.top_tokens[0].text.strip()
    title = rf">Feature {feature.index}</a> · <span[^>]*>(<code>(<i>␣</i>)?)?{re.escape(about)}<"
    assert re.search(title, shown(app))


def test_another_example_steers_with_another_feature(open_page: Open) -> None:
    app = open_page("playground", id="finished")
    shown_features: list[str | None] = []
    for _ in range(3):
        app.button(key="steer-example").click().run()
        shown_features.append(address(app, "steer"))
    assert len(set(shown_features)) == 3


def test_an_example_that_fails_shows_why(open_page: Open, workbench: Workbench) -> None:
    app = open_page("playground", id="finished")
    workbench.is_down = True
    app.button(key="steer-example").click().run()
    assert not app.exception
    assert "answered 503" in shown(app)


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ({}, "Click steer beside a feature above, or add one by its index."),
        ({"steer": "3:1"}, "Write a prompt and press Generate."),
        ({"steer": "3:1", "prompt": "import"}, ">Press Generate."),
    ],
)
def test_the_steering_panel_says_what_is_missing(
    open_page: Open, query: dict[str, str], hint: str
) -> None:
    assert hint in shown(open_page("playground", id="finished", **query))


def test_the_steer_links_add_and_remove_a_feature(open_page: Open) -> None:
    text = shown(open_page("playground", id="finished", text=TEXT, steer="3:2"))
    assert changes(text, "steer") == [{"steer": ["3:2,10:0.75"], "go": [""]}]
    assert changes(text, "steered") == [{"steer": [""], "go": [""]}]


@pytest.mark.parametrize("prompt", ["refuse", "break"])
def test_steering_that_fails_shows_why_and_can_be_tried_again(open_page: Open, prompt: str) -> None:
    app = open_page("playground", id="finished", steer="3:1", prompt=prompt, go="1")
    assert not app.exception
    words = {"refuse": "The text is invalid", "break": "a bug"}[prompt]
    assert words in shown(app)
    assert "go" not in app.query_params


# On a feature's page


def test_a_feature_page_shows_your_text_like_a_context(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("feature", id="finished", index="10", snapshot="100")
    lines = shown(app).count('class="wb-line"')
    assert readings(workbench) == []
    app.text_area(key="url:own").set_value(TEXT).run()
    [asked] = readings(workbench)
    assert (asked["text"], asked["features"]) == (TEXT, [10])
    text = shown(app)
    assert text.count('class="wb-line"') == lines + 1
    own = text[text.index('<div class="wb-contexts full">') :]
    assert re.findall(r'data-v="([\d.]+)">([^<]*)<', own)[:2] == [
        ("7.50", "import"),
        ("7.50", "↵\nimport"),
    ]
    assert "&lt;bos&gt;" not in own
    assert "lock=10" in text
    assert "steer=10%3A0.75" in text


def test_your_text_stays_when_the_feature_changes(open_page: Open, workbench: Workbench) -> None:
    app = open_page("feature", id="finished", index="10", own=TEXT)
    app.button(key="right").click().run()
    assert [body["features"] for body in readings(workbench)] == [[10], [11]]
    assert "does not fire on this text" in shown(app)


def test_a_text_that_is_refused_leaves_the_feature_on_the_page(open_page: Open) -> None:
    app = open_page("feature", id="finished", index="4", own="refuse this")
    assert not app.exception
    assert "The text is invalid" in shown(app)
    assert "Top activations" in shown(app)
