"""Requests for runs that evaluate and index an SAE trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from sae_engine.errors import ConfigError
from sae_engine.schema.config import PretrainedFormat
from sae_engine.schema.runs import ImportCreate, RunCreate


def import_request(body: ImportCreate) -> RunCreate:
    """The request for a run that evaluates and indexes an SAE.

    Raises `ConfigError` unless a layer or hook point is given.
    """
    config = body.config
    model = _section(config, "model") | {"name": body.model, "site": body.site}
    if body.layer is not None:
        model["layer"] = body.layer
    if body.hook_point is not None:
        model["hook_point"] = body.hook_point
    if body.layer is None and not model.get("hook_point"):
        raise ConfigError.of("layer", "Give the layer that the SAE reads, or its hook_point.")
    return RunCreate(
        preset=body.preset,
        config=with_pretrained(config | {"model": model}, body.path, body.format),
        name=body.name or name_of(Path(body.path)),
        tags=body.tags,
        notes=body.notes,
    )


def with_pretrained(
    config: dict[str, Any], path: str, format: PretrainedFormat | None = None
) -> dict[str, Any]:
    """Overrides that select the SAE at `path`; its size comes from the file, not from a preset."""
    sae = {"pretrained": path, "d_sae": None, "expansion_factor": None}
    if format is not None:
        sae["pretrained_format"] = format
    return config | {"sae": _section(config, "sae") | sae}


def name_of(path: Path) -> str:
    """Default name of an imported SAE: that of its folder."""
    folder = path.parent if path.suffix else path
    return (folder.name or path.name)[:200]


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = config.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError.of(name, "This is a section with fields, such as {...}.")
    return cast(dict[str, Any], value)
