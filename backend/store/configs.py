"""Stored configurations, which may have been written by another version of the program."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from backend.errors import ConflictError
from backend.store.models import RunRow
from sae_engine.schema.config import ADDED_LATER, RunConfig
from sae_engine.schema.fields import is_tree, merge
from sae_engine.schema.problems import message_of

UNREADABLE = "UnreadableConfig"
"""Type of the error of a run whose stored configuration is invalid."""
SHOWN_PROBLEMS = 3


class UnreadableConfigError(ConflictError):
    """A run's stored configuration is not valid in this version."""


class Readable(NamedTuple):
    """What can be read of a stored configuration."""

    config: RunConfig
    """Has default values in place of invalid fields."""
    problem: str | None
    """One sentence naming the invalid fields; None if there are none."""


def config_of(row: RunRow) -> RunConfig:
    """A run's configuration; raises `UnreadableConfigError`."""
    config, problem = readable_config(row)
    if problem is not None:
        raise UnreadableConfigError(problem, kind="unreadable-config")
    return config


def readable_config(row: RunRow) -> Readable:
    """A run's configuration, with defaults in place of fields that this version refuses."""
    tree = _completed(row.config)
    try:
        return Readable(RunConfig.model_validate(tree), None)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    where = "; ".join(
        f"{'.'.join(map(str, p['loc'])) or 'all'}: {message_of(p).rstrip('.')}"
        for p in problems[:SHOWN_PROBLEMS]
    )
    problem = f"This version cannot read the settings of the run '{row.name}' ({where})."
    places = [p["loc"] for p in problems]
    for depth in (2, 1):  # first the fields, then their sections
        try:
            config = RunConfig.model_validate(_without(tree, [p[:depth] for p in places]))
        except ValidationError:
            continue
        return Readable(config, problem)
    return Readable(RunConfig(name=row.name), problem)


def _completed(tree: object) -> object:
    """A configuration tree with the fields that did not exist when it was stored."""
    return merge(ADDED_LATER, tree) if is_tree(tree) else tree


def _without(tree: object, paths: list[tuple[int | str, ...]]) -> object:
    """A copy of a configuration tree without the fields or sections at some paths."""
    if not isinstance(tree, dict):
        return tree
    gone = {path[0] for path in paths if len(path) == 1}
    return {
        name: _without(value, [path[1:] for path in paths if len(path) > 1 and path[0] == name])
        for name, value in cast(dict[str, Any], tree).items()
        if name not in gone
    }
