"""From an SAE's file to the run that looks into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from sae_engine.errors import ConfigError
from sae_engine.schema.config import PretrainedFormat
from sae_engine.schema.runs import ImportCreate, RunCreate


def import_request(body: ImportCreate) -> RunCreate:
    """The run that evaluates and indexes an SAE.

    Raises `ConfigError` if nobody says where in the model it reads.
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
    """Overrides for looking into the SAE at `path`: its shape is the file's, not a preset's."""
    sae = {"pretrained": path, "d_sae": None, "expansion_factor": None}
    if format is not None:
        sae["pretrained_format"] = format
    return config | {"sae": _section(config, "sae") | sae}


def name_of(path: Path) -> str:
    """What an SAE is called when nobody says: its folder's name."""
    folder = path.parent if path.suffix else path
    return (folder.name or path.name)[:200]


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    value: object = config.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError.of(name, "It is a group of fields, such as {...}.")
    return cast(dict[str, Any], value)
