"""Dotted fields: specs, merging, comparing, parsing and formatting."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_engine.presets import presets, resolve_config
from sae_engine.schema import fields
from sae_engine.schema.config import RunConfig

SPECS = fields.field_specs()
DEFAULTS = RunConfig.model_validate({})


def test_every_field_of_the_configuration_is_listed_once_in_order() -> None:
    schema = RunConfig.model_json_schema()
    expected: list[str] = []
    for name, value in schema["properties"].items():
        reference = value.get("$ref") or value.get("allOf", [{}])[0].get("$ref")
        if reference is None:
            expected.append(name)
        else:
            section = schema["$defs"][reference.rsplit("/", 1)[1]]
            expected += [f"{name}.{inner}" for inner in section["properties"]]
    assert fields.field_names() == expected
    assert {"name", "seed", "sae.k", "train.lr", "index.tokens"} <= set(expected)


@pytest.mark.parametrize("path", SPECS)
def test_every_field_has_help(path: str) -> None:
    assert SPECS[path].help


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
    kinds["array"] = "list"
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
def test_a_configuration_does_not_differ_from_itself(name: str) -> None:
    config = presets()[name].config
    assert fields.changed_from(config, fields.values_of(config)) == {}


@pytest.mark.parametrize("base", presets())
@pytest.mark.parametrize("other", presets())
def test_differences_turn_one_preset_into_another(base: str, other: str) -> None:
    wanted = presets()[other].config
    changes = fields.changed_from(presets()[base].config, fields.values_of(wanted))
    assert resolve_config(base, changes) == wanted
    assert fields.merge(
        presets()[base].config.model_dump(mode="json"), changes
    ) == wanted.model_dump(mode="json")


def test_an_expansion_factor_replaces_a_number_of_latents() -> None:
    base = presets()["tiny"].config
    values = fields.values_of(base) | {"sae.d_sae": None, "sae.expansion_factor": 4}
    changes = fields.changed_from(base, values)
    assert changes == {"sae": {"d_sae": None, "expansion_factor": 4}}
    assert resolve_config("tiny", changes).sae.expansion_factor == 4


def test_zero_is_not_false() -> None:
    values = fields.values_of(DEFAULTS) | {"train.tensorboard": 0}
    assert fields.changed_from(DEFAULTS, values) == {"train": {"tensorboard": 0}}


def test_only_fields_in_which_configurations_differ_are_compared() -> None:
    configs = [
        resolve_config("tiny", {"name": str(n), "sae": {"k": k}}) for n, k in enumerate((8, 16, 8))
    ]
    assert fields.differing(configs) == {"sae.k": [8, 16, 8]}
    assert fields.differing(configs[:1]) == {}
    assert fields.differing([]) == {}


def test_merging_changes_neither_side() -> None:
    base, over = {"sae": {"k": 1, "d_sae": 2}, "seed": 3}, {"sae": {"k": 4}, "name": "a"}
    merged = fields.merge(base, over)
    assert merged == {"sae": {"k": 4, "d_sae": 2}, "seed": 3, "name": "a"}
    merged["sae"]["k"] = 5
    assert (base["sae"], over["sae"]) == ({"k": 1, "d_sae": 2}, {"k": 4})


def test_nesting_and_flattening_are_inverse() -> None:
    values = fields.values_of(DEFAULTS)
    assert dict(fields.flatten(fields.nest(values))) == values
    with pytest.raises(fields.FieldError, match="'sae' is a section"):
        fields.nest({"sae": 1, "sae.k": 2})


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("sae.k", "64", 64),
        ("train.total_tokens", "1e6", 1_000_000),
        ("train.total_tokens", "1_000_000", 1_000_000),
        ("train.lr", "3e-4", 3e-4),
        ("train.lr", "null", None),
        ("train.lr", "unset", None),
        ("train.lr", "nan", "nan"),
        ("sae.k", "many", "many"),
        ("sae.k", "1_", "1_"),
        ("sae.k", "1__0", "1__0"),
        ("sae.k", "null", "null"),
        ("sae.tied_weights", "True", True),
        ("sae.tied_weights", "yes", "yes"),
        ("data.dataset", "12", "12"),
        ("data.dataset", "C:d", "C:d"),
        ("data.subset", "null", None),
        ("data.subset", '"null"', "null"),
        ("model.name", "no", "no"),
        ("no.such", "1", "1"),
    ],
)
def test_text_is_parsed_by_the_type_of_its_field(path: str, text: str, value: Any) -> None:
    parsed = fields.parse_value(path, text)
    assert (parsed, type(parsed)) == (value, type(value))


@given(st.sampled_from(["data.dataset", "data.subset", "model.hook_point"]), st.text(max_size=20))
def test_formatted_text_is_parsed_back_to_the_same_text(path: str, text: str) -> None:
    written = fields.value_text(path, text)
    assert fields.parse_value(path, written) == text
    other = "y" if text == "x" else "x"
    assert fields.parse_grid([f"{path} = {written}, {other}"]) == {path: [text, other]}


MIXTURE = [{"dataset": "a, b.txt", "weight": 2}, {"dataset": 'say "c"', "weight": 0.5}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"dataset": "a", "weight": 1}]', [{"dataset": "a", "weight": 1}]),
        ("[]", []),
        ("unset", None),
        ("[{dataset: a}]", "[{dataset: a}]"),
        ("3", "3"),
        ("a.txt", "a.txt"),
        ('"a.txt"', "a.txt"),
    ],
)
def test_a_list_is_parsed_from_json(text: str, value: Any) -> None:
    assert fields.parse_value("data.mixture", text) == value


def test_a_formatted_list_is_parsed_back_to_the_same_list() -> None:
    written = fields.value_text("data.mixture", MIXTURE)
    assert fields.parse_value("data.mixture", written) == MIXTURE
    assert fields.parse_grid([f"data.mixture = {written}, null"]) == {
        "data.mixture": [MIXTURE, None]
    }


def test_a_mixture_is_a_value_that_is_compared_and_set_as_a_whole() -> None:
    config = resolve_config("tiny", {"data": {"mixture": MIXTURE}})
    assert fields.values_of(config)["data.mixture"] == MIXTURE
    assert fields.differing([DEFAULTS, config])["data.mixture"] == [None, MIXTURE]
    base = presets()["tiny"].config
    changes = fields.changed_from(base, fields.values_of(config))
    assert changes == {"data": {"mixture": MIXTURE}}
    assert resolve_config("tiny", changes) == config


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**29), 10**29))
def test_formatted_numbers_are_parsed_back_to_the_same_number(number: float) -> None:
    read = fields.parse_value("train.lr", fields.value_text("train.lr", number))
    assert read == number
    assert isinstance(read, int | float)
    assert math.isfinite(read)


def test_a_grid_is_parsed_line_by_line() -> None:
    text = "sae.k = 16, 32\n\n model.layer=1,2 \ntrain.lr = 1e-4\nsae.tied_weights = true, false\n"
    text += 'data.dataset = a b, "c, d"\nsae.expansion_factor = null, 4'
    grid = fields.parse_grid(text.splitlines())
    assert grid == {
        "sae.k": [16, 32],
        "model.layer": [1, 2],
        "train.lr": [1e-4],
        "sae.tied_weights": [True, False],
        "data.dataset": ["a b", "c, d"],
        "sae.expansion_factor": [None, 4],
    }
    assert fields.grid_size(grid) == 2 * 2 * 1 * 2 * 2 * 2
    assert fields.parse_grid([" ", ""]) == {}
    assert fields.grid_size({}) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["sae.k 16"], "has no '='"),
        (["nope = 1"], "Unknown setting 'nope'; use the full name, such as sae.k"),
        (["sae.k ="], "Give values separated by commas"),
        (["sae.k = ,"], "Give values separated by commas"),
        (["sae.k = 16, 16"], "A value is given twice"),
        (["sae.k = 1", "sae.k = 2"], "is given twice"),
    ],
)
def test_an_invalid_grid_is_an_error_that_says_what_to_write(lines: list[str], words: str) -> None:
    with pytest.raises(fields.FieldError, match=words):
        fields.parse_grid(lines)


@pytest.mark.parametrize("filling", [" ", "x ", '"', '\\"', " ,", '" '])
def test_a_long_grid_is_parsed_in_no_time(filling: str) -> None:
    text = "name = 1" + filling * 50_000 + "2"
    began = time.perf_counter()
    with suppress(fields.FieldError):
        fields.parse_grid([text])
    assert time.perf_counter() - began < 10
