"""The launch page: forecasts, devices, sweeps, and clicks that come twice."""

from __future__ import annotations

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from tests.frontend.conftest import FakeServer
from tests.frontend.fake_world import World
from tests.frontend.views.test_pages import address, moved, shown

Open = Callable[..., AppTest]


def test_a_forecast_says_what_it_takes_what_is_free_and_where_from(open_page: Open) -> None:
    text = shown(open_page("launch", preset="tiny"))
    assert "cuda:0 memory</span><strong>3 GiB</strong><small>60 GiB free" in text
    assert "<strong>2 GiB</strong><small>50 GiB free" in text
    assert "about 1 min 30 s" in text
    assert "based on 9,000 tokens/s of &#x27;tiny &lt;baseline&gt;&#x27; on cuda:0" in text


def test_the_steps_are_those_that_the_engine_does(open_page: Open) -> None:
    """500,000 tokens fill 976 batches of 512; the rest of a batch is left out."""
    text = shown(open_page("launch", preset="tiny"))
    assert "500,000 tokens in batches of 512: 976 steps." in text


def test_what_does_not_fit_is_warned_of_as_text(open_page: Open) -> None:
    app = open_page("launch", preset="tiny")
    app.number_input(key="field:tiny:sae.d_sae").set_value(200_000).run()
    assert '<div class="wb-notice warning"><span>It takes &lt;much&gt;.' in shown(app)


def test_a_device_is_chosen_from_those_that_are_there(open_page: Open, world: World) -> None:
    app = open_page("launch", preset="tiny")
    assert app.selectbox(key="field:tiny:model.device").options == ["auto", "cuda:0", "cpu"]
    app.selectbox(key="field:tiny:model.device").set_value("cpu").run()
    app.button(key="start").click().run()
    assert world.created[0].config == {"model": {"device": "cpu"}}


def test_a_clone_tells_the_server_where_it_came_from(open_page: Open, world: World) -> None:
    app = open_page("launch", clone="finished")
    app.button(key="start").click().run()
    assert world.created[0].cloned_from == "finished"


def test_the_same_start_again_at_once_is_the_same_run(open_page: Open, server: FakeServer) -> None:
    app = open_page("launch", preset="tiny")
    app.button(key="start").click().run()
    first = address(moved(app), "id")
    app.switch_page("views/launch.py").run()
    app.button(key="start").click().run()
    assert address(moved(app), "id") == first
    assert len(server.world.created) == 1
    app.switch_page("views/launch.py").run()
    app.number_input(key="field:tiny:seed").set_value(1).run()
    app.button(key="start").click().run()
    assert address(moved(app), "id") != first


def test_values_to_try_make_a_sweep_whose_size_is_said_before(
    open_page: Open, world: World
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key="field:tiny:name").set_value("trial").run()
    app.text_area(key="grid:tiny").set_value("sae.k = 16, 32, 64\ntrain.lr = 1e-4, 3e-4").run()
    assert app.button(key="start").label == "Start 6 runs"
    assert "6 runs: sae.k = 16, 32, 64 × train.lr = 0.0001, 0.0003." in shown(app)
    assert "Disk for all runs (at most)</span><strong>12 GiB</strong>" in shown(app)
    assert "All runs share one pass over the text." in shown(app)
    assert any("--grid sae.k=16,32,64 --grid train.lr=0.0001,0.0003" in c.value for c in app.code)
    app.button(key="start").click().run()
    [sent] = world.sweeps
    assert sent.grid == {"sae.k": [16, 32, 64], "train.lr": [1e-4, 3e-4]}
    assert (sent.preset, sent.name, sent.config) == ("tiny", "trial", {})
    assert address(moved(app), "id") == "swept"
    assert "sweep of 6 runs" in shown(app)


def test_a_value_that_cannot_be_tried_is_said_and_nothing_starts(
    open_page: Open, world: World
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_area(key="grid:tiny").set_value("sae.k = 5000, 16").run()
    app.button(key="start").click().run()
    assert "sae.k = 5000 is larger" in shown(app)
    assert world.sweeps == []
    app.text_area(key="grid:tiny").set_value("sae.kk = 1").run()
    assert "Unknown setting &#x27;sae.kk&#x27;" in shown(app)
    assert app.button(key="start").disabled
