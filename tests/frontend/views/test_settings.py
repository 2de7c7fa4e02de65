"""The page of a run's settings: which ones differ, how to repeat it, what it was started with."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from backend.jobs.environment import record_environment, this_environment
from sae_engine.presets import resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import field_names
from tests.frontend.views.test_pages import Open, shown
from tests.frontend.workbench import Workbench


def rows(app: AppTest) -> list[str]:
    return re.findall(r"<tr[^>]*><td><code>([\w.]+)</code>", shown(app))


def changed(app: AppTest) -> list[str]:
    return re.findall(r'<tr class="changed"[^>]*><td><code>([\w.]+)</code>', shown(app))


def test_all_settings_are_listed_and_those_that_differ_from_the_preset_marked(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.configure("finished", "sae", k=7)
    workbench.configure("finished", "train", lr=0.5)
    app = open_page("settings", id="finished")
    assert rows(app) == [name for name in field_names() if name != "name"]
    assert changed(app) == ["sae.k", "train.lr"]
    assert "2 of 54 settings differ from <code>tiny</code>, the closest preset." in shown(app)
    assert "<td>7</td><td>16</td>" in shown(app)  # this run's value and that of `tiny`


def test_a_run_with_the_settings_of_a_preset_says_so(open_page: Open) -> None:
    text = shown(open_page("settings", id="finished"))
    assert "All 54 settings match the preset <code>tiny</code>." in text
    assert "<code>train.lr</code></td><td>unset</td>" in text


def test_a_setting_that_the_run_chose_is_shown_with_its_value(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.change("finished", chosen={"train.lr": 0.00023, "sae.k": None})
    text = shown(open_page("settings", id="finished", q="train.lr"))
    assert "<code>train.lr</code></td><td>2.30e-04 (chosen)</td>" in text
    text = shown(open_page("settings", id="finished", q="sae.k"))
    assert "<code>sae.k</code></td><td>none</td>" in text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "sae.k"}, ["sae.k"]),
        ({"q": "WARMUP"}, ["train.warmup_steps"]),
        ({"changed": "1"}, ["sae.k"]),
        ({"q": "no such setting"}, []),
    ],
)
def test_settings_are_searched_and_narrowed_to_the_changed_ones(
    open_page: Open, workbench: Workbench, query: dict[str, str], found: list[str]
) -> None:
    workbench.configure("finished", "sae", k=7)
    app = open_page("settings", id="finished", **query)
    assert set(found) <= set(rows(app))
    assert len(rows(app)) < 8
    assert ("No setting matches." in shown(app)) == (not found)


def test_the_command_and_the_file_repeat_the_run(open_page: Open, workbench: Workbench) -> None:
    workbench.configure("finished", "sae", k=7)
    workbench.configure("finished", "model", layer=3)
    app = open_page("settings", id="finished")
    command, file = (code.value for code in app.code)
    words = ["sae-workbench", "train", "tiny", "--model.layer", "3", "--sae.k", "7"]
    assert shlex.split(command) == words
    wanted = resolve_config("tiny", {"model": {"layer": 3}, "sae": {"k": 7}})
    repeated = RunConfig.model_validate(yaml.safe_load(file))
    assert repeated.model_copy(update={"name": ""}) == wanted.model_copy(update={"name": ""})


def test_versions_and_machine_are_those_recorded_with_the_run(
    open_page: Open, workbench: Workbench
) -> None:
    assert "Not recorded." in shown(open_page("settings", id="finished"))
    recorded = this_environment().model_copy(
        update={"commit": "abc123-dirty", "packages": {"torch": "9.9"}, "gpus": ["H200"]}
    )
    record_environment(workbench.settings.run_folder("finished"), recorded)
    text = shown(open_page("settings", id="finished"))
    assert "<dd>abc123-dirty</dd>" in text
    assert "<dt>torch</dt><dd>9.9</dd>" in text
    assert "<dd>H200</dd>" in text


def test_the_settings_of_an_imported_run_are_not_counted_against_a_preset(
    open_page: Open, workbench: Workbench
) -> None:
    assert "settings match the preset" in shown(open_page("settings", id="finished"))
    workbench.configure("finished", "sae", pretrained="/data/theirs", k=7)
    app = open_page("settings", id="finished")
    assert "settings match the preset" not in shown(app)
    assert "closest preset" not in shown(app)
    assert "sae.k" in rows(app)
    command, file = (code.value for code in app.code)
    assert RunConfig.model_validate(yaml.safe_load(file)).sae.pretrained == "/data/theirs"
    assert not {"k", "d_sae"} & set(yaml.safe_load(file)["sae"])
    assert command.startswith("sae-workbench import /data/theirs --model.name tiny-gemma2 ")
