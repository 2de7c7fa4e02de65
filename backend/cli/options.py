"""What a command line asks for, as the request that REST would get."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from backend.jobs.imports import name_of, with_pretrained
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder
from sae_engine.schema.runs import RunCreate

DEFAULT_RECIPE = "tiny"


def request_from(
    *,
    recipe: str | None,
    path: Path | None,
    flags: Sequence[str],
    name: str | None,
    suffix: str = "",
) -> RunCreate:
    """What a command line asks for: flags over the file over the recipe; without a `name` of its
    own it has the file's, and the `suffix`. Raises `UserError`.
    """
    overrides = read_config_file(path) if path else {}
    from_file = overrides.pop("preset", None)
    preset = recipe or from_file or (None if path else DEFAULT_RECIPE)
    overrides = _merged(overrides, overrides_from(flags))
    if name is None and suffix:
        name = f"{overrides.get('name', '')} {suffix}".strip()[-200:]
    return _asked(preset=preset, config=overrides, name=name)


def import_from(path: Path, flags: Sequence[str], name: str | None) -> RunCreate:
    """The run that looks into the SAE at `path`; a run's folder says itself which model, layer and
    text it read. Raises `UserError`.
    """
    config = overrides_from(flags)
    own = RunFolder(path).config
    if own.exists():
        config = _merged(read_config_file(own), config)
    elif not _says_where_it_reads(config.get("model")):
        raise UserError(f"Say which model's activations '{path}' reads: --model NAME --layer N.")
    config = with_pretrained(config, str(path.resolve()))
    return _asked(preset=None, config=config, name=name or name_of(path))


def _says_where_it_reads(model: object) -> bool:
    return (
        isinstance(model, dict) and "name" in model and ("layer" in model or "hook_point" in model)
    )


def _asked(*, preset: str | None, config: dict[str, Any], name: str | None) -> RunCreate:
    try:
        return RunCreate(preset=preset, config=config, name=name)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['msg']}.") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """A YAML file's configuration tree, which may also name a `preset`."""
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"'{path}' holds a {type(tree).__name__}; "
            "it should hold fields such as `sae: {k: 32}`."
        )
    return cast(dict[str, Any], tree)


def overrides_from(flags: Sequence[str]) -> dict[str, Any]:
    """`--sae.k 64 --train.lr=3e-4` as a nested dict; values are read as YAML, `3e-4` as a number
    too.
    """
    nested: dict[str, Any] = {}
    waiting = list(flags)
    while waiting:
        flag = waiting.pop(0)
        if not flag.startswith("--"):
            raise UserError(
                f"'{flag}' is not expected here; write fields as --section.field VALUE."
            )
        field, has_value, text = flag[2:].partition("=")
        if not has_value:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"{flag} lacks its value.")
            text = waiting.pop(0)
        section = nested
        *parents, last = field.split(".")
        for parent in parents:
            below: object = section.setdefault(parent, {})
            if not isinstance(below, dict):
                raise ConfigError.of(field, f"'{parent}' was given a value of its own.")
            section = cast(dict[str, Any], below)
        section[last] = _value(text)
    return nested


def _value(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merged(cast(Any, below), cast(Any, value)) if both else value
    return merged


def grid_from(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`sae.k=16,32` as a field and the values to try."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        field, has_values, values = text.partition("=")
        if not has_values:
            raise UserError(f"--grid {text} lacks its values; write --grid sae.k=16,32.")
        grid[field.strip()] = [_value(value.strip()) for value in values.split(",")]
    return grid
