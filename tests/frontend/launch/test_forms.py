"""The launch form: its problems, its YAML and its command."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backend.cli.options import grid_from, import_from
from frontend.launch import forms
from sae_engine.presets import presets, resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import field_names, merge, parse_value
from tests.frontend.samples import make_run

DEFAULTS = RunConfig.model_validate({})


def test_the_main_fields_exist() -> None:
    assert set(forms.MAIN_FIELDS) <= set(field_names())


def test_a_valid_form_has_no_problems_and_an_invalid_one_names_its_fields() -> None:
    assert forms.problems(DEFAULTS.model_dump(mode="json")) == {}
    broken = merge(DEFAULTS.model_dump(), {"sae": {"d_sae": 8, "k": 9}, "data": {"ctx_len": 2}})
    problems = forms.problems(broken)
    assert "8" in problems["sae.k"]
    assert "ctx_len" in "".join(problems)


def test_a_problem_of_a_section_is_shown_beside_the_field_it_names() -> None:
    messages = {
        "sae.k": "too large",
        "sae": "sae.tied_weights cannot be set with sae.k",
        "data.mixture.0.weight": "It is required.",
        "preset": "There is no preset 'x'",
    }
    places = ["sae.k", "sae.tied_weights", "data.mixture", ""]
    assert forms.placed(messages) == dict(zip(places, messages.values(), strict=True))


def test_the_yaml_is_the_configuration_without_unset_fields() -> None:
    config = presets()["tiny"].config
    text = forms.as_yaml(config.model_dump(mode="json"))
    assert RunConfig.model_validate(yaml.safe_load(text)) == config
    assert "null" not in text


def test_the_command_names_the_preset_and_only_changed_settings() -> None:
    changes = {"name": "a b", "sae": {"k": 64, "tied_weights": True}, "train": {"lr": None}}
    assert forms.as_command("tiny", changes) == (
        "sae-workbench train tiny --name 'a b' --sae.k 64 --sae.tied_weights true --train.lr null"
    )


def test_the_command_of_a_sweep_parses_back_to_the_same_grid() -> None:
    grid: dict[str, list[Any]] = {
        "sae.k": [16, 32],
        "train.lr": [1e-5, None],
        "sae.tied_weights": [True, False],
        "data.dataset": ["a b", "12"],
    }
    words = shlex.split(forms.as_command("tiny", {}, grid))
    given = [after for word, after in pairwise(words) if word == "--grid"]
    assert grid_from(given) == grid


@pytest.mark.parametrize("is_run_folder", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"layer": 4}, "index": {"tokens": 5000}, "sae": {"pretrained_format": "saelens"}},
        {"model": {"hook_point": "model.layers.1", "hook_io": "input"}, "data": {"seed": 3}},
    ],
)
def test_the_import_command_repeats_an_import(
    tmp_path: Path, changes: dict[str, Any], is_run_folder: bool
) -> None:
    """Also of a run's folder, whose configuration the command line would take."""
    if is_run_folder:
        own = {"data": {"ctx_len": 64, "subset": "s"}, "index": {"tokens": 2000}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(own))
        changes = merge(changes, {"sae": {"pretrained_format": "sae-workbench"}})
    sized = {"sae": {"pretrained": str(tmp_path), "d_sae": 64, "k": 8}}
    run = make_run(config=resolve_config(None, merge(changes, sized)))
    program, command, path, *options = shlex.split(forms.as_import_command(run))
    assert (program, command, path) == ("sae-workbench", "import", str(tmp_path))
    names = [name.removeprefix("--") for name in options[::2]]
    values = {n: parse_value(n, text) for n, text in zip(names, options[1::2], strict=True)}
    again = resolve_config(None, import_from(path, values, None).config)
    assert again.sae.of_loaded(64, 8) == run.config.sae
    assert again.model_copy(update={"sae": run.config.sae}) == run.config


@given(st.text(max_size=20))
def test_text_on_the_command_line_is_read_back_as_the_same_text(text: str) -> None:
    command = forms.as_command("tiny", {"data": {"dataset": text}})
    last = shlex.split(command)[3:]
    word = last[0].partition("=")[2] if len(last) == 1 else last[1]
    assert parse_value("data.dataset", word) == text
