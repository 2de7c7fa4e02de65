"""Presets, and how a preset and overrides become a validated `RunConfig`."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, cast

import yaml
from pydantic import ValidationError

from sae_engine.errors import ConfigError
from sae_engine.presets.foreign_names import advice
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import (
    MAX_GRID,
    field_names,
    grid_problem,
    grid_size,
    is_tree,
    merge,
    nest,
    section_help,
)
from sae_engine.schema.machine import Preset
from sae_engine.schema.problems import FieldProblem, message_of

# Pairs of which only one may be set: an override of one removes the other from the preset.
_EITHER_OR = [("sae", "d_sae", "expansion_factor"), ("train", "total_tokens", "num_epochs")]


@cache
def presets() -> dict[str, Preset]:
    """All presets by name, in display order."""
    loaded: list[tuple[int, Preset]] = []
    for file in resources.files("sae_engine.presets").iterdir():
        if file.name.endswith(".yaml"):
            recipe = yaml.safe_load(file.read_text("utf-8"))
            name = file.name.removesuffix(".yaml")
            config = RunConfig.model_validate(recipe["config"])
            preset = Preset(name=name, description=recipe["description"], config=config)
            loaded.append((recipe["order"], preset))
    return {preset.name: preset for _, preset in sorted(loaded, key=lambda pair: pair[0])}


def get_preset(name: str) -> Preset:
    """Return a preset; raises `ConfigError` listing the existing names."""
    try:
        return presets()[name]
    except KeyError:
        raise ConfigError.of(
            "preset", f"There is no preset '{name}'; choose one of {', '.join(presets())}."
        ) from None


def resolve_config(preset: str | None, overrides: dict[str, Any]) -> RunConfig:
    """Apply partial `overrides`, nested like `RunConfig`, to a preset or the defaults; validate.

    Raises `ConfigError` with one problem per wrong field.
    """
    overrides = by_section(overrides)
    base = get_preset(preset).config.model_dump(exclude_unset=True) if preset else {}
    for section, one, other in _EITHER_OR:
        given: object = overrides.get(section)
        if is_tree(given) and section in base:
            if given.get(one) is not None:
                base[section].pop(other, None)
            if given.get(other) is not None:
                base[section].pop(one, None)
    return validate_config(merge(base, overrides))


def expand_grid(
    preset: str | None, overrides: dict[str, Any], grid: Mapping[str, Sequence[Any]]
) -> list[tuple[str, RunConfig]]:
    """The configuration of every combination in a grid, with a label such as `k=16 layer=2`.

    `grid` maps fields such as `sae.k` to values to try; the last field varies fastest. Raises
    `ConfigError`.
    """
    overrides = by_section(overrides)
    for field, values in grid.items():
        if field not in field_names():
            raise ConfigError([unknown_field(field)])
        if problem := grid_problem(values):
            raise ConfigError.of(field, problem)
    count = grid_size(grid)
    if count > MAX_GRID:
        raise ConfigError.of(
            next(iter(grid)), f"The grid has {count:,} combinations; the limit is {MAX_GRID}."
        )
    last = [field.rpartition(".")[2] for field in grid]
    names = last if len(set(last)) == len(last) else list(grid)
    expanded: list[tuple[str, RunConfig]] = []
    for values in itertools.product(*grid.values()):
        tree = merge(overrides, nest(dict(zip(grid, values, strict=True))))
        label = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        expanded.append((label, resolve_config(preset, tree)))
    return expanded


def by_section(overrides: Mapping[Any, Any]) -> dict[str, Any]:
    """A copy of `overrides` with `{}` for a section that is None, as YAML reads one without fields.

    Raises `ConfigError` for a section that is no mapping, and for a name that is not text.
    """
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        if name in section_help():
            value = _section(name, {} if value is None else value)
        if not isinstance(name, str):
            raise ConfigError([unknown_field(str(name))])
        found[name] = value
    return found


def _section(name: str, value: object) -> dict[str, Any]:
    if not is_tree(value):
        some = next(field for field in field_names() if field.startswith(f"{name}."))
        message = f"This is a section with fields, such as {some} (got {value!r:.80})."
        raise ConfigError.of(name, message)
    for field in cast(dict[object, Any], value):
        if not isinstance(field, str):
            raise ConfigError([unknown_field(f"{name}.{field}")])
    return value


def validate_config(values: dict[str, Any]) -> RunConfig:
    """Validate a nested dict as a `RunConfig`; raises `ConfigError`."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([problem for e in error.errors() for problem in _problems(e)]) from None


def _problems(error: Any) -> list[FieldProblem]:
    path = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    if error["type"] == "extra_forbidden":
        inside = [f"{path}.{key}" for key in value] if is_tree(value) else []
        return [unknown_field(field) for field in inside or [path]]
    message = message_of(error)
    subject = message.split(" ", 1)[0]
    if subject in field_names():  # a rule about several fields begins with the one to change
        path = subject
    return [FieldProblem(field=path, message=message)]


def unknown_field(field: str) -> FieldProblem:
    """The problem with a field that does not exist, with a hint at the right one."""
    message = advice(field)
    if message is None:
        close = difflib.get_close_matches(field, field_names(), n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else "."
        message = f"Unknown setting{hint}"
    return FieldProblem(field=field, message=message)
