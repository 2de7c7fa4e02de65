"""A configuration on the launch form: its main fields, problems, YAML and command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import (
    Tree,
    Value,
    field_names,
    flatten,
    is_tree,
    value_text,
    values_of,
)
from sae_engine.schema.problems import message_of
from sae_engine.schema.runs import Run

MAIN_FIELDS = (
    "model.layer",
    "model.site",
    "sae.d_sae",
    "sae.k",
    "train.total_tokens",
    "train.lr",
    "model.device",
)
TEXT_FIELDS = ("data.dataset", "data.text_column")
"""Fields that are always visible; the others are collapsed by section."""

PLACE = ("model.name", "model.layer", "model.site")
"""Settings that an import takes from the SAE's files unless they are given."""
FROM_RUN_FOLDER = ("model.", "data.", "index.", "train.ce_tokens")
"""Those it takes from the folder of a run, which has a configuration."""
NOT_FOR_IMPORT = ("name", "sae.pretrained", "sae.d_sae", "sae.expansion_factor", "sae.k")


GRID = "sweep"
"""The URL's parameter for the values to sweep, and the place of their problems."""


def problems(values: dict[str, Any]) -> dict[str, str]:
    """The validation errors of a nested configuration, by the field next to which each is shown."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return placed({".".join(map(str, e["loc"])): message_of(e) for e in error.errors()})
    return {}


def placed(messages: Mapping[str, str]) -> dict[str, str]:
    """Messages by the field next to which each is shown: its own, the one that contains it, or the
    one that the message names first.
    """
    return {_place(field, message): message for field, message in messages.items()}


def _place(field: str, message: str) -> str:
    paths = field_names()
    if field in paths:
        return field
    named = [path for path in paths if path in message]
    inside = (path for path in paths if field.startswith(f"{path}."))
    return next(inside, None) or min(named, key=message.index, default="")


def as_yaml(config: Tree) -> str:
    """The configuration as YAML for `sae-workbench train --config`, without unset fields."""
    bare = {
        name: {field: part for field, part in value.items() if part is not None}
        if is_tree(value)
        else value
        for name, value in config.items()
    }
    return yaml.safe_dump(bare, sort_keys=False, allow_unicode=True)


def as_command(
    preset: str, changes: Tree, grid: Mapping[str, Sequence[Value]] | None = None
) -> str:
    """The shell command that starts the same run, or the same sweep over a `grid`."""
    words = ["sae-workbench", "train", preset, *_options(flatten(changes))]
    for path, values in (grid or {}).items():
        words += ["--grid", f"{path}={','.join(value_text(path, value) for value in values)}"]
    return shlex.join(words)


def as_import_command(run: Run) -> str:
    """The shell command that imports the same SAE again, of the same size by itself."""
    values, defaults = values_of(run.config), values_of(RunConfig())
    pretrained = run.config.sae.pretrained
    assert pretrained is not None
    is_of_ours = run.settings["sae.pretrained_format"] == "sae-workbench"
    needed = FROM_RUN_FOLDER if is_of_ours else PLACE
    given = {
        path: value
        for path, value in values.items()
        if path not in NOT_FOR_IMPORT and (value != defaults[path] or path.startswith(needed))
    }
    return shlex.join(["sae-workbench", "import", pretrained, *_options(given.items())])


def _options(values: Iterable[tuple[str, Value]]) -> list[str]:
    words: list[str] = []
    for path, value in values:
        text = str(value) if path == "name" else value_text(path, value)
        words += [f"--{path}={text}"] if text.startswith("-") else [f"--{path}", text]
    return words
