"""The launch form's fields, read off `RunConfig`: pure functions, no widgets.

Help is the text under each field, bounds are those of the types: a new hyper-parameter shows up by
itself.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sae_engine.schema.config import RunConfig

_LIKE_A_NUMBER = re.compile(r"[+-]?[\d.]+([eE][+-]?\d+)?")

Kind = Literal["int", "float", "bool", "text", "choice"]
Value = int | float | bool | str | None

MAIN_FIELDS = (
    "model.layer",
    "model.site",
    "sae.d_sae",
    "sae.k",
    "train.total_tokens",
    "train.lr",
    "model.device",
)
"""The knobs that stand in the open; all others fold away by section."""


class FieldSpec(NamedTuple):
    """One knob of the form."""

    path: str
    kind: Kind
    optional: bool
    help: str
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    max_length: int | None
    choices: tuple[str, ...]

    @property
    def section(self) -> str:
        """First part of the path; fields of the run itself belong to `run`."""
        return self.path.split(".")[0] if "." in self.path else "run"

    @property
    def label(self) -> str:
        """The name in words: `d_sae` stays as the field calls it."""
        return self.path.split(".")[-1]


def field_specs(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[FieldSpec]:
    """Every field of the configuration that holds a value, in the order of its definition."""
    return list(_walk(model, prefix))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[FieldSpec]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield _spec(prefix + name, info)


def section_help() -> dict[str, str]:
    """What each section is about."""
    return {
        name: (info.annotation.__doc__ or "")
        for name, info in RunConfig.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }


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
        kind="choice" if choices else _KINDS[kind],
        optional=optional,
        help=info.description or "",
        minimum=minimum,
        maximum=maximum,
        exclusive_minimum=isinstance(low, Gt),
        max_length=length,
        choices=choices,
    )


_KINDS: dict[Any, Kind] = {int: "int", float: "float", bool: "bool", str: "text"}


def _unwrapped(annotation: Any) -> tuple[Any, bool, list[Any]]:
    """The bare type, whether None is allowed, and the constraints found on the way."""
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


def values_of(config: RunConfig) -> dict[str, Value]:
    """Dotted path to value."""
    return {spec.path: _at(config, spec.path) for spec in field_specs()}


def _at(config: BaseModel, path: str) -> Value:
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found


def differences(values: Mapping[str, Value], base: RunConfig) -> dict[str, Any]:
    """What differs from `base`, nested like `RunConfig`; empty when nothing does."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        if _same(value, _at(base, path)):
            continue
        *sections, name = path.split(".")
        level = nested
        for section in sections:
            level = level.setdefault(section, {})
        level[name] = value
    return nested


def _same(one: Value, other: Value) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def merged_config(base: RunConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration as a nested dict, `changes` laid over `base`; not validated."""
    whole = base.model_dump(mode="json")
    for name, value in changes.items():
        if isinstance(value, dict):
            whole[name].update(value)
        else:
            whole[name] = value
    return whole


def problems(values: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a nested configuration, by dotted field; the model's own words."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return {
            ".".join(map(str, e["loc"])): e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        }
    return {}


def field_of_problem(field: str, message: str) -> str:
    """The form's field beside which a problem belongs: its own, else the first one it names."""
    paths = [spec.path for spec in field_specs()]
    if field in paths:
        return field
    return next((path for path in paths if path in message), "")


def as_yaml(config: Mapping[str, Any]) -> str:
    """The configuration as a file for `sae-workbench train --config`; unset fields left out."""
    bare = {name: _without_none(value) for name, value in config.items()}
    return yaml.safe_dump(bare, sort_keys=False, allow_unicode=True)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: part for name, part in members.items() if part is not None}
    return value


def as_command(
    preset: str, changes: Mapping[str, Any], grid: Mapping[str, Sequence[Value]] | None = None
) -> str:
    """The shell command that starts the same run, or the same sweep over a `grid`."""
    words = ["sae-workbench", "train", preset]
    for path, value in _flat(changes):
        text = str(value) if path == "name" else _yaml_word(value)
        words += [f"--{path}={text}"] if text.startswith("-") else [f"--{path}", text]
    for field, values in (grid or {}).items():
        words += ["--grid", f"{field}={','.join(map(_yaml_word, values))}"]
    return shlex.join(words)


def _yaml_word(value: Value) -> str:
    """A value as YAML; text that would be read as something else is quoted."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _LIKE_A_NUMBER.fullmatch(value) is None:
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return yaml.safe_dump(value, default_style='"', width=math.inf).strip()


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield prefix + name, value
