"""The launch form is the configuration: every field, its help, its bounds; differences travel."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backend.cli.options import grid_from
from frontend.launch import forms
from sae_engine.presets import field_names, presets, resolve_config
from sae_engine.schema.config import RunConfig

SPECS = {spec.path: spec for spec in forms.field_specs()}
DEFAULTS = RunConfig.model_validate({})


def test_the_form_holds_every_field_of_the_configuration_once_and_in_order() -> None:
    assert list(SPECS) == field_names()


@pytest.mark.parametrize("path", SPECS)
def test_every_field_has_help(path: str) -> None:
    assert SPECS[path].help


def test_the_main_fields_exist() -> None:
    assert set(forms.MAIN_FIELDS) <= set(SPECS)


def _json_schema(path: str) -> dict[str, Any]:
    """The field's JSON schema, from pydantic: an independent walk over the same model."""
    whole = RunConfig.model_json_schema()
    level = whole
    for part in path.split("."):
        level = level["properties"][part]
        if "$ref" in level:
            level = whole["$defs"][level["$ref"].rsplit("/", 1)[1]]
    return level


@pytest.mark.parametrize("path", SPECS)
def test_kind_bounds_choices_and_optionality_agree_with_the_json_schema(path: str) -> None:
    spec, schema = SPECS[path], _json_schema(path)
    parts = schema.get("anyOf", [schema])
    kinds = {"integer": "int", "number": "float", "boolean": "bool", "string": "text"}
    [real] = [part for part in parts if part.get("type") != "null"]
    choices = real.get("enum") or ([real["const"]] if "const" in real else [])
    assert spec.optional == (len(parts) == 2)
    assert list(spec.choices) == choices
    assert spec.kind == ("choice" if choices else kinds[real["type"]])
    assert spec.minimum == real.get("minimum", real.get("exclusiveMinimum"))
    assert spec.maximum == real.get("maximum", real.get("exclusiveMaximum"))
    assert spec.exclusive_minimum == ("exclusiveMinimum" in real)
    assert spec.max_length == real.get("maxLength")


@pytest.mark.parametrize("name", presets())
def test_an_untouched_form_differs_in_nothing(name: str) -> None:
    config = presets()[name].config
    assert forms.differences(forms.values_of(config), config) == {}


@pytest.mark.parametrize("base", presets())
@pytest.mark.parametrize("other", presets())
def test_differences_turn_one_recipe_into_another(base: str, other: str) -> None:
    wanted = presets()[other].config
    changes = forms.differences(forms.values_of(wanted), presets()[base].config)
    assert resolve_config(base, changes) == wanted
    assert forms.merged_config(presets()[base].config, changes) == wanted.model_dump(mode="json")


def test_a_width_by_factor_takes_the_place_of_a_number_of_latents() -> None:
    base = presets()["tiny"].config
    values = forms.values_of(base) | {"sae.d_sae": None, "sae.expansion_factor": 4}
    changes = forms.differences(values, base)
    assert changes == {"sae": {"d_sae": None, "expansion_factor": 4}}
    assert resolve_config("tiny", changes).sae.expansion_factor == 4


def test_one_is_not_true() -> None:
    values = forms.values_of(DEFAULTS) | {"train.tensorboard": 0}
    assert forms.differences(values, DEFAULTS) == {"train": {"tensorboard": 0}}


def test_a_valid_form_has_no_problems_and_an_invalid_one_says_where() -> None:
    assert forms.problems(DEFAULTS.model_dump(mode="json")) == {}
    broken = forms.merged_config(DEFAULTS, {"sae": {"d_sae": 8, "k": 9}, "data": {"ctx_len": 2}})
    problems = forms.problems(broken)
    assert "8" in problems["sae"]
    assert "ctx_len" in "".join(problems)


def test_a_problem_of_a_section_stands_beside_the_field_it_names() -> None:
    assert forms.field_of_problem("sae.k", "too large") == "sae.k"
    assert forms.field_of_problem("sae", "sae.k = 9 is larger than sae.d_sae = 8") in (
        "sae.k",
        "sae.d_sae",
    )
    assert forms.field_of_problem("preset", "There is no preset 'x'") == ""


def test_the_yaml_is_the_configuration_without_what_is_unset() -> None:
    config = presets()["tiny"].config
    text = forms.as_yaml(config.model_dump(mode="json"))
    assert RunConfig.model_validate(yaml.safe_load(text)) == config
    assert "null" not in text


def test_the_command_names_the_preset_and_only_what_differs() -> None:
    changes = {"name": "a b", "sae": {"k": 64, "tied_weights": True}, "train": {"lr": None}}
    assert forms.as_command("tiny", changes) == (
        "sae-workbench train tiny --name 'a b' --sae.k 64 --sae.tied_weights true --train.lr null"
    )


def test_the_command_of_a_sweep_is_understood_as_the_same_grid() -> None:
    grid: dict[str, list[Any]] = {
        "sae.k": [16, 32],
        "train.lr": [1e-5, None],
        "sae.tied_weights": [True, False],
        "data.dataset": ["a b", "12"],
    }
    words = shlex.split(forms.as_command("tiny", {}, grid))
    given = [after for word, after in pairwise(words) if word == "--grid"]
    assert grid_from(given) == grid


@given(st.text(max_size=20))
def test_text_on_the_command_line_is_read_back_as_the_same_text(text: str) -> None:
    command = forms.as_command("tiny", {"data": {"dataset": text}})
    last = shlex.split(command)[3:]
    word = last[0].partition("=")[2] if len(last) == 1 else last[1]
    assert yaml.safe_load(word) == text
