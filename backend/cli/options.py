"""Builds from a command line the request that REST clients would send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from backend.jobs.imports import name_of, with_found, with_pretrained
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder, user_path
from sae_engine.hub import is_on_hub
from sae_engine.presets import by_section
from sae_engine.schema.config import PretrainedFormat
from sae_engine.schema.fields import FieldError, Value, merge, nest, parse_grid
from sae_engine.schema.problems import message_of
from sae_engine.schema.runs import RunCreate

DEFAULT_RECIPE = "tiny"


def request_from(
    *,
    recipe: str | None,
    path: Path | None,
    values: Mapping[str, Value],
    name: str | None,
    suffix: str = "",
) -> RunCreate:
    """The request for a run: `values` override the file, which overrides the recipe.

    The default name is the file's with the `suffix`. Raises `UserError`.
    """
    overrides = read_config_file(path) if path else {}
    from_file = overrides.pop("preset", None)
    preset = recipe or from_file or (None if path else DEFAULT_RECIPE)
    overrides = merge(overrides, nest(values))
    if name is None and suffix:
        name = f"{overrides.get('name', '')} {suffix}".strip()[-200:]
    return _request(preset=preset, config=overrides, name=name)


def import_from(path: str, values: Mapping[str, Value], name: str | None) -> RunCreate:
    """The request for a run that evaluates the SAE at `path` and indexes its features.

    Model, layer and text are taken from `path` if it is a run's folder; else model and layer, if
    they are not given, from the SAE's files. Raises `UserError`.
    """
    config = nest(values)
    if not is_on_hub(path):
        path = str(user_path(path).resolve())
    own = RunFolder(path).config
    if own.exists():
        config = merge(read_config_file(own), config)
    else:
        wanted = config.get("sae", {}).get("pretrained_format")
        config["model"] = _with_found(config.get("model", {}), path, wanted)
    return _request(preset=None, config=with_pretrained(config, path), name=name or name_of(path))


def _with_found(
    model: dict[str, Any], path: str, wanted: PretrainedFormat | None
) -> dict[str, Any]:
    try:
        return with_found(model, path, wanted)
    except ConfigError as error:
        raise UserError(
            f"{error.problems[0].message} Use --model NAME and --layer N, or --model.hook_point."
        ) from None


def _request(*, preset: str | None, config: dict[str, Any], name: str | None) -> RunCreate:
    try:
        return RunCreate(preset=preset, config=config, name=name)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {message_of(first)}") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """The configuration in a YAML file, which may also name a `preset`. Raises `UserError`."""
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
            f"'{path}' holds a {type(tree).__name__} instead of fields such as `sae: {{k: 32}}`."
        )
    return by_section(cast(dict[Any, Any], tree))


def grid_from(lines: Sequence[str]) -> dict[str, list[Value]]:
    """Fields and their values to try, from lines such as `sae.k=16,32`; raises `UserError`."""
    try:
        return parse_grid(lines)
    except FieldError as error:
        raise UserError(f"--grid: {error}") from None
