"""Density histogram, map, and the comparison of two runs' features."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from sae_engine.features.index.listing import cursor_at
from tests.backend.conftest import wait_for
from tests.frontend.indexes import D_SAE, NUM_TOKENS, fired, matched_cosine
from tests.frontend.samples import ESCAPED, NASTY
from tests.frontend.views.test_pages import Open, address, shown
from tests.frontend.workbench import Workbench

BOTH = {"runs": "finished,failed"}


def plots(app: AppTest) -> dict[str, Any]:
    """The data of each chart, by its key."""
    found: dict[str, Any] = {}
    for element in app.get("bidi_component"):
        if element.proto.component_name == "wb_plot":
            found[element.proto.id.rpartition("-")[2]] = json.loads(element.proto.json)
    return found


def only_plot(app: AppTest) -> dict[str, Any]:
    [plot] = plots(app).values()
    return plot


def test_the_density_histogram_offers_the_list_between_two_densities(open_page: Open) -> None:
    app = open_page(
        "features", id="finished", sort="index", cursor=cursor_at(50), min_density="0.01"
    )
    plot = only_plot(app)
    assert plot["range"] == {
        "address": "features?id=finished&sort=index",
        "low": "min_density",
        "high": "max_density",
    }
    [bars] = plot["figure"]["data"]
    low, high = bars["customdata"][bars["marker"]["opacity"].index(1)]
    assert low == pytest.approx(0.01)
    assert high > low


def test_density_is_filtered_in_percent_and_kept_in_the_address(open_page: Open) -> None:
    app = open_page("features", id="finished", sort="index")
    app.number_input(key="percent:min_density").set_value(1.0).run()
    assert address(app, "min_density") == "0.01"
    expected = [i for i in range(D_SAE) if fired(i) / NUM_TOKENS >= 0.01]
    assert f"{len(expected)} features" in shown(app)
    app.number_input(key="percent:max_density").set_value(2.0).run()
    assert app.number_input(key="percent:min_density").value == 1.0
    expected = [i for i in expected if fired(i) / NUM_TOKENS <= 0.02]
    assert f"{len(expected)} features" in shown(app)
    assert "max_density=0.02" in shown(app)  # the headings keep it
    app.number_input(key="percent:min_density").set_value(None).run()
    assert "min_density" not in app.query_params


@pytest.mark.parametrize("bound", ["nan", "x", "-3", "7"])
def test_an_invalid_density_in_the_address_is_harmless(open_page: Open, bound: str) -> None:
    assert not open_page("features", id="finished", min_density=bound).exception


def test_a_point_of_the_map_opens_its_feature_and_escapes_its_text(open_page: Open) -> None:
    app = open_page("map", id="finished", snapshot="200")
    plot = only_plot(app)
    assert plot["opens"] == "feature?id=finished&snapshot=200&index="
    assert plot["library"].endswith("plotly-gl2d.min.js")
    points = plot["figure"]["data"][0]
    place = points["customdata"].index(3)
    assert "&lt;script&gt;" in points["hovertext"][place]
    assert all("<script" not in text for text in points["hovertext"])
    assert "10 dead features hidden" in shown(app)
    assert 49 not in points["customdata"]


def test_a_search_marks_features_on_the_map(open_page: Open) -> None:
    app = open_page("map", id="finished", q=f"{NASTY} $x$")
    found = only_plot(app)["figure"]["data"][1]
    assert found["customdata"] == [3]
    assert "1 feature found" in shown(app)


def test_while_a_map_is_computed_the_page_shows_its_progress(
    open_page: Open, workbench: Workbench
) -> None:
    progress = shlex.quote(json.dumps({"phase": f"comparing {NASTY}", "fraction": 0.25}))
    workbench.compute_analyses(f"echo {progress}; exec sleep 60")
    app = open_page("map", id="finished")
    words = f"Building the map, once for each snapshot… comparing {ESCAPED} · 25%"
    wait_for(lambda: words in shown(app.run()))
    assert not plots(app)
    workbench.finish_analyses()
    app.run()
    assert plots(app)


def test_a_failed_computation_shows_why_and_is_repeated_only_on_demand(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.compute_analyses("kill -9 $$")
    app = open_page("map", id="finished")
    wait_for(lambda: "The computation was ended by SIGKILL." in shown(app.run()))
    asked = workbench.num_requests("/map")
    app.run()
    assert workbench.num_requests("/map") == asked
    workbench.finish_analyses()
    app.button(key="retry:map:finished:489").click().run()
    assert plots(app)


def test_matches_link_to_both_features_and_can_be_reversed(open_page: Open) -> None:
    app = open_page("compare", **BOTH, part="features")
    text = shown(app)
    alive = [i for i in range(D_SAE - 1) if fired(i) and fired(i + 1)]
    assert sum(matched_cosine(i) >= 0.7 for i in alive) == 288
    assert "Mutual matches</dt><dd>288 of 502 (57.4%)" in text
    assert 'href="feature?id=finished&amp;index=2"' in text
    assert 'href="feature?id=failed&amp;index=3"' in text
    assert 'order=asc">Cosine ↓' in text
    assert ESCAPED in text
    assert "<script" not in text
    app.segmented_control(key="url:section").set_value("only_b").run()
    assert address(app, "section") == "only_b"
    assert "Nearest in A" in shown(app)
    app.slider(key="url:threshold").set_value(0.5).run()
    assert float(address(app, "threshold")) == 0.5


def test_pages_of_matches_follow_each_other(open_page: Open) -> None:
    app = open_page("compare", **BOTH, part="features", threshold="0")
    app.button(key="page-on").click().run()
    assert 'finished&amp;index=52"' in shown(app)
    assert 'finished&amp;index=51"' not in shown(app)
    app.button(key="page-back").click().run()
    assert 'finished&amp;index=51"' in shown(app)


def test_features_that_cannot_be_matched_say_why(open_page: Open, workbench: Workbench) -> None:
    workbench.patch("failed", name=NASTY)
    workbench.configure("failed", "model", name="gpt2")
    app = open_page("compare", **BOTH, part="features")
    assert not app.exception
    assert f"&#x27;{ESCAPED}&#x27; reads gpt2" in shown(app)


def test_one_token_is_looked_up_in_both_runs(open_page: Open) -> None:
    app = open_page("compare", **BOTH, part="tokens", q=" import")
    text = shown(app)
    assert 'href="feature?id=finished&amp;index=504&amp;' in text
    assert 'href="feature?id=failed&amp;index=504&amp;' in text
    assert text.count("840 occurrences") == 2
    assert "does not occur" in shown(open_page("compare", **BOTH, part="tokens", q="zzz"))


def test_an_unknown_run_in_a_comparison_shows_a_message(open_page: Open) -> None:
    app = open_page("compare", a="nope", b="finished")
    assert not app.exception
    assert "There is no run &#x27;nope&#x27;." in shown(app)
