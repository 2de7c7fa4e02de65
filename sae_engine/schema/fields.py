"""Dotted paths of the configuration, such as `sae.k`: list, read, set, merge, compare and parse.

The command line, the launch form, presets, sweeps and comparisons all go through here. Trees are
dicts nested like `RunConfig`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sae_engine.schema.config import RunConfig

MAX_GRID = 256
"""Maximum number of runs in a sweep."""
UNSET = ("null", "unset")
"""Text that clears an optional field."""

Kind = Literal["int", "float", "bool", "text", "choice", "list"]
Value = int | float | bool | str | list[Any] | None
"""A list holds trees or texts."""
Tree = dict[str, Any]
"""Values nested like `RunConfig`, possibly partial."""

_KINDS: dict[Any, Kind] = {int: "int", float: "float", bool: "bool", str: "text"}
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_GRID_VALUE = re.compile(rf"\s*({_QUOTED}\s*|[^,]*)(?:,|$)")


class FieldError(ValueError):
    """Text that names an unknown field or has no value; the message says what to write instead."""


class FieldSpec(NamedTuple):
    """Type, bounds and help of one field."""

    path: str
    kind: Kind
    optional: bool
    help: str
    default: Value
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    max_length: int | None
    choices: tuple[str, ...]

    @property
    def section(self) -> str:
        """First part of the path; `run` for top-level fields."""
        return self.path.split(".")[0] if "." in self.path else "run"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]


@cache
def field_specs() -> Mapping[str, FieldSpec]:
    """Every field by path, in the order of definition."""
    return {spec.path: spec for spec in _specs(RunConfig, "")}


def field_names() -> list[str]:
    """The paths of all fields."""
    return list(field_specs())


def section_help() -> dict[str, str]:
    """Description of each section, by name."""
    return {
        name: info.annotation.__doc__ or ""
        for name, info in RunConfig.model_fields.items()
        if _is_section(info.annotation)
    }


def _specs(model: type[BaseModel], prefix: str) -> Iterator[FieldSpec]:
    for name, info in model.model_fields.items():
        if _is_section(info.annotation):
            yield from _specs(info.annotation, f"{prefix}{name}.")
        else:
            yield _spec(prefix + name, info)


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _spec(path: str, info: FieldInfo) -> FieldSpec:
    kind, optional, inner = _unwrapped(info.annotation)
    metadata = [*info.metadata, *inner]
    low = next((m for m in metadata if isinstance(m, Ge | Gt)), None)
    high = next((m for m in metadata if isinstance(m, Le | Lt)), None)
    length = next((m.max_length for m in metadata if isinstance(m, MaxLen)), None)
    minimum: Any = low.ge if isinstance(low, Ge) else low.gt if low else None
    maximum: Any = high.le if isinstance(high, Le) else high.lt if high else None
    choices = tuple(str(c) for c in get_args(kind)) if get_origin(kind) is Literal else ()
    return FieldSpec(
        path=path,
        kind="choice" if choices else "list" if get_origin(kind) is tuple else _KINDS[kind],
        optional=optional,
        help=info.description or "",
        default=info.default,
        minimum=minimum,
        maximum=maximum,
        exclusive_minimum=isinstance(low, Gt),
        max_length=length,
        choices=choices,
    )


def _unwrapped(annotation: Any) -> tuple[Any, bool, list[Any]]:
    """The plain type, whether None is allowed, and all constraints."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        kind, optional, more = _unwrapped(inner)
        bounds = [b for m in metadata for b in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return kind, optional, [*bounds, *more]
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        kind, _, metadata = _unwrapped(parts[0])
        return kind, len(parts) < len(get_args(annotation)), metadata
    return annotation, False, []


# Reading, setting, merging, comparing


def values_of(config: RunConfig) -> dict[str, Value]:
    """The value of every field by path."""
    return {path: value_of(config, path) for path in field_names()}


def value_of(config: BaseModel, path: str) -> Value:
    """The value of the field at a path."""
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    if isinstance(found, tuple):
        parts = cast(tuple[BaseModel | str, ...], found)
        return [
            part if isinstance(part, str) else part.model_dump(mode="json", exclude_defaults=True)
            for part in parts
        ]
    return found


def nest(values: Mapping[str, Any]) -> Tree:
    """Values by path as a tree; raises `FieldError` if a section is also given as a value."""
    tree: Tree = {}
    for path, value in values.items():
        level: Any = tree
        *sections, name = path.split(".")
        for section in sections:
            level = level.setdefault(section, {})
            if not is_tree(level):
                raise FieldError(f"'{section}' is a section; set its fields, such as '{path}'.")
        level[name] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by path."""
    for name, value in tree.items():
        if is_tree(value):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`base` updated with `over`, section by section; neither argument changes."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if is_tree(value) and is_tree(below) else value
    return merged


def is_tree(value: object) -> TypeGuard[Tree]:
    return isinstance(value, dict)


def changed_from(base: RunConfig, values: Mapping[str, Value]) -> Tree:
    """The part of `values`, by path, that differs from `base`."""
    return nest(
        {path: value for path, value in values.items() if not _equal(value, value_of(base, path))}
    )


def differing(configs: Sequence[RunConfig]) -> dict[str, list[Value]]:
    """Fields in which configurations differ, with their values; `name` is left out."""
    return differing_values([values_of(config) for config in configs])


def differing_values(runs: Sequence[Mapping[str, Value]]) -> dict[str, list[Value]]:
    """As `differing`, of values by path."""
    columns = {path: [run[path] for run in runs] for path in field_names() if path != "name"}
    return {
        path: values
        for path, values in columns.items()
        if not all(_equal(value, values[0]) for value in values)
    }


def _equal(one: Value, other: Value) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


# Text


def parse_value(path: str, text: str) -> Value:
    """Parse a field's value; text of the wrong type is returned as is, and validation rejects it.

    JSON-quoted text is always text; `null` and `unset` clear an optional field.
    """
    spec = field_specs().get(path)
    if re.fullmatch(_QUOTED, text, re.DOTALL):
        try:
            text = json.loads(text, strict=False)
        except ValueError:
            return text
        return text if spec is None or spec.kind != "list" else _list(text)
    if spec is None:
        return text
    if spec.optional and text.lower() in UNSET:
        return None
    match spec.kind:
        case "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        case "int" | "float":
            return _number(text)
        case "text" | "choice":
            return text
        case "list":
            return _list(text)


def _list(text: str) -> list[Any] | str:
    """Read JSON; text that is no list is returned as is."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return cast(list[Any], found) if isinstance(found, list) else text


def _number(text: str) -> int | float | str:
    if re.fullmatch(r"[+-]?\d{1,30}(_\d{1,10}){0,5}", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    if number.is_integer() and abs(number) < 2**53:  # 1e6 tokens
        return int(number)
    return number if math.isfinite(number) else text


def value_text(path: str, value: Value) -> str:
    """Format a value so that `parse_value` and `parse_grid` read it back."""
    if isinstance(value, list):
        return json.dumps(json.dumps(value))
    if isinstance(value, str):
        plain = "," not in value and value == value.strip() != ""
        return value if plain and parse_value(path, value) == value else json.dumps(value)
    return json.dumps(value)


def parse_grid(lines: Iterable[str]) -> dict[str, list[Value]]:
    """Parse values to try from lines such as `sae.k = 16, 32`; raises `FieldError`."""
    grid: dict[str, list[Value]] = {}
    for line in filter(str.strip, lines):
        path, found, text = (part.strip() for part in line.partition("="))
        if not found:
            raise FieldError(f"'{line.strip()}' has no '='; write a line such as sae.k = 16, 32.")
        if path in grid:
            raise FieldError(f"'{path}' is given twice; write all its values on one line.")
        if path not in field_specs():
            raise FieldError(f"Unknown setting '{path}'; use the full name, such as sae.k.")
        texts = [match[1].strip() for match in _GRID_VALUE.finditer(text) if match[0]]
        values = [parse_value(path, text) for text in texts if text]
        if problem := grid_problem(values):
            raise FieldError(f"'{path}': {problem}")
        grid[path] = values
    return grid


def grid_problem(values: Sequence[Any]) -> str | None:
    """The problem with the values to try for a field, or None."""
    if not values:
        return "Give values separated by commas, such as 16, 32."
    if len({repr(value) for value in values}) < len(values):
        return "A value is given twice."
    return None


def grid_size(grid: Mapping[str, Sequence[Any]]) -> int:
    """Number of combinations; 1 for an empty grid."""
    return math.prod(len(values) for values in grid.values())
