"""From a command line to the request that REST would get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from backend.jobs.imports import name_of, with_pretrained
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.schema.fields import FieldError, Value, merge, nest, parse_grid
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
    """The request for a run: field `values` over the file over the recipe.

    Without a `name`, the run has the file's, with the `suffix`. Raises `UserError`.
    """
    overrides = read_config_file(path) if path else {}
    from_file = overrides.pop("preset", None)
    preset = recipe or from_file or (None if path else DEFAULT_RECIPE)
    overrides = merge(overrides, nest(values))
    if name is None and suffix:
        name = f"{overrides.get('name', '')} {suffix}".strip()[-200:]
    return _asked(preset=preset, config=overrides, name=name)


def import_from(path: Path, values: Mapping[str, Value], name: str | None) -> RunCreate:
    """The request for a run that evaluates the SAE at `path` and indexes its features.

    Model, layer and text come from `path` if it is a run's folder. Raises `UserError`.
    """
    config = nest(values)
    own = RunFolder(path).config
    if own.exists():
        config = merge(read_config_file(own), config)
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


def grid_from(lines: Sequence[str]) -> dict[str, list[Value]]:
    """`sae.k=16,32` as a field and the values to try; raises `UserError`."""
    try:
        return parse_grid(lines)
    except FieldError as error:
        raise UserError(f"--grid: {error}") from None
