"""The launch page: forecasts, devices, sweeps, and double clicks."""

from __future__ import annotations

import pytest

from frontend.html.format import gibibytes, roughly
from sae_engine.schema.machine import EstimateRequest
from tests.frontend.samples import ESCAPED
from tests.frontend.views.test_pages import Open, address, moved, shown
from tests.frontend.workbench import Workbench


def test_the_page_shows_the_servers_forecast(open_page: Open) -> None:
    text = shown(open_page("launch", preset="tiny"))
    assert f"about {roughly(600_000 / 9_000)}" in text
    assert f"9,000 tokens/s, measured by &#x27;live {ESCAPED}&#x27; on cuda:0" in text


def test_the_number_of_steps_leaves_out_a_partial_batch(open_page: Open) -> None:
    """600,000 tokens fill 1,171 batches of 512; the rest of a batch is left out."""
    text = shown(open_page("launch", preset="tiny"))
    assert "600,000 tokens in batches of 512: 1,171 steps." in text


def test_a_run_that_does_not_fit_is_warned_about(open_page: Open) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key="url:sae.d_sae").set_value("2e9").run()
    assert '<div class="wb-notice warning"><span>This needs ' in shown(app)


def test_the_device_is_chosen_from_the_servers_devices(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("launch", preset="tiny")
    assert app.selectbox(key="url:model.device").options == ["auto", "cuda:0", "cpu"]
    app.selectbox(key="url:model.device").set_value("cpu").run()
    app.button(key="start").click().run()
    assert workbench.posted("/api/runs")[0]["config"] == {"model": {"device": "cpu"}}


def test_a_clone_tells_the_server_where_it_came_from(open_page: Open, workbench: Workbench) -> None:
    app = open_page("launch", clone="finished")
    app.button(key="start").click().run()
    assert workbench.posted("/api/runs")[0]["cloned_from"] == "finished"


def test_starting_twice_at_once_makes_one_run(open_page: Open, workbench: Workbench) -> None:
    app = open_page("launch", preset="tiny")
    app.button(key="start").click().run()
    first = address(moved(app), "id")
    app.switch_page("views/launch.py").run()
    app.button(key="start").click().run()
    assert address(moved(app), "id") == first
    assert len(workbench.runs) == 4
    app.switch_page("views/launch.py").run()
    app.text_input(key="url:seed").set_value("1").run()
    app.button(key="start").click().run()
    assert address(moved(app), "id") != first


def test_values_to_try_make_a_sweep_whose_size_is_shown_before_the_start(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key="url:name").set_value("trial").run()
    app.text_area(key="url:sweep").set_value("sae.k = 16, 32, 64\ntrain.lr = 1e-4, 3e-4").run()
    assert app.button(key="start").label == "Start 6 runs"
    assert "6 runs: sae.k = 16, 32, 64 × train.lr = 0.0001, 0.0003." in shown(app)
    grid = {"sae.k": [16, 32, 64], "train.lr": [1e-4, 3e-4]}
    forecast = workbench.client.estimate(EstimateRequest(preset="tiny", grid=grid))
    disk = gibibytes(forecast.disk_bytes)
    assert f"Disk for all runs (at most)</span><strong>{disk}</strong>" in shown(app)
    assert "All runs share one pass over the text." in shown(app)
    assert any("--grid sae.k=16,32,64 --grid train.lr=0.0001,0.0003" in c.value for c in app.code)
    app.button(key="start").click().run()
    [sent] = workbench.posted("/api/sweeps")
    assert sent["grid"] == grid
    assert (sent["preset"], sent["name"], sent["config"]) == ("tiny", "trial", {})
    [group] = {run.group_id for run in workbench.runs.values()} - {None}
    assert address(moved(app), "id") == group
    assert "sweep of 6 runs" in shown(app)


def test_an_invalid_sweep_value_is_reported_and_nothing_starts(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_area(key="url:sweep").set_value("sae.k = 16, 5000").run()
    text = shown(app)
    assert "sae.k = 5000 is larger" in text[text.index("</li>") :]  # below the values
    assert app.button(key="start").disabled
    app.text_area(key="url:sweep").set_value("sae.k = 16").run()
    assert app.button(key="start").label == "Start 1 run"
    assert not app.button(key="start").disabled
    app.text_area(key="url:sweep").set_value("sae.kk = 1").run()
    assert "Unknown setting &#x27;sae.kk&#x27;" in shown(app)
    assert app.button(key="start").disabled


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("sae.k", "1e2", 100),
        ("sae.d_sae", "8e3", 8000),
        ("train.total_tokens", "1e6", 1_000_000),
        ("train.lr", "3e-4", 3e-4),
        ("data.dataset", "texts/a.txt", "texts/a.txt"),
        ("sae.expansion_factor", "4", 4),
    ],
)
def test_values_are_read_as_in_the_shell_and_kept_in_the_address(
    open_page: Open, workbench: Workbench, path: str, text: str, value: object
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key=f"url:{path}").set_value(text).run()
    assert address(app, path) == text
    again = open_page("launch", preset="tiny", **{path: text})
    assert again.text_input(key=f"url:{path}").value == text
    if path == "sae.expansion_factor":
        again.text_input(key="url:sae.d_sae").set_value("").run()
        assert address(again, "sae.d_sae") == "unset"
    again.button(key="start").click().run()
    section, name = path.split(".")
    assert workbench.posted("/api/runs")[0]["config"][section][name] == value


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("sae.k", "-3", "It must be at least 1 (got -3)"),
        ("sae.k", "abc", "'abc' is not a whole number."),
        ("train.lr", "fast", "'fast' is not a number."),
        ("name", "x" * 501, "It has 501 characters; the limit is"),
        ("data.text_column", "x" * 501, "It has 501 characters; the limit is"),
    ],
)
def test_an_invalid_value_is_shown_and_explained_at_once_and_nothing_starts(
    open_page: Open, path: str, text: str, message: str
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key=f"url:{path}").set_value(text).run()
    assert app.text_input(key=f"url:{path}").value == text
    assert message.replace("'", "&#x27;") in shown(app)
    assert app.button(key="start").disabled
    app.text_input(key=f"url:{path}").set_value("").run()
    assert "Fix 1 setting" not in shown(app)
    assert not app.button(key="start").disabled


def test_a_cleared_field_returns_to_the_recipes_value(open_page: Open) -> None:
    app = open_page("launch", **{"preset": "tiny", "sae.k": "8"})
    app.text_input(key="url:sae.k").set_value("").run()
    assert app.text_input(key="url:sae.k").value == "16"
