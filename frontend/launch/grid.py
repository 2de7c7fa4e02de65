"""Values to try, as people write them on the launch page: a field and its values on each line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

from frontend.launch.forms import field_specs

MOST_RUNS = 256  # as many as the API makes at once


class GridError(ValueError):
    """A line that cannot be read; says which and what to write instead."""


def parse_grid(text: str) -> dict[str, list[Any]]:
    """`sae.k = 16, 32` and more such lines as field to values; raises `GridError`."""
    grid: dict[str, list[Any]] = {}
    fields = {spec.path for spec in field_specs()}
    for line in filter(str.strip, text.splitlines()):
        field, found, values = (part.strip() for part in line.partition("="))
        if not found:
            raise GridError(f"'{line.strip()}' has no '='; write a line such as sae.k = 16, 32.")
        if field not in fields:
            raise GridError(f"There is no field '{field}'; its help names it, such as sae.k.")
        if field in grid:
            raise GridError(f"'{field}' is there twice; write all its values on one line.")
        grid[field] = _values(field, values)
    return grid


def _values(field: str, text: str) -> list[Any]:
    """Values between commas, read as YAML reads them."""
    try:
        loaded: object = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        loaded = None
    values = cast("list[Any]", loaded) if isinstance(loaded, list) else []
    if not values or any(isinstance(value, list | dict) for value in values):
        raise GridError(f"'{field}' needs values with commas between them, such as 16, 32.")
    if len({repr(value) for value in values}) < len(values):
        raise GridError(f"'{field}' names a value twice.")
    return [_number(value) for value in values]


def _number(value: Any) -> Any:
    """YAML takes `1e-4` for text; the form's numbers are written like that."""
    if isinstance(value, str):
        try:
            return float(value) if math.isfinite(float(value)) else value
        except ValueError:
            return value
    return value


def num_runs(grid: Mapping[str, Sequence[Any]]) -> int:
    """How many runs every combination of the values makes."""
    return math.prod(len(values) for values in grid.values()) if grid else 1
