"""Requests for runs that evaluate and index an SAE trained elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backend.jobs.texts import relative_to_data
from backend.settings import Settings
from sae_engine.errors import ConfigError
from sae_engine.files import user_path
from sae_engine.hub import HubName, is_on_hub
from sae_engine.interop.archives import is_archive, unpacked, unpacked_folder
from sae_engine.interop.formats import describe
from sae_engine.presets import by_section
from sae_engine.schema.config import PretrainedFormat
from sae_engine.schema.runs import ImportCreate, RunCreate
from sae_engine.schema.saes import FoundSAE

FOLDER = "imports"
"""Of SAEs that were uploaded or unpacked, in the data folder."""


def located(settings: Settings, path: str) -> str:
    """Where the SAE at `path`, which may be relative to the data folder, is expected."""
    if is_on_hub(path):
        return path
    return relative_to_data(settings, path) or str(settings.data_dir / path)


def unzipped(settings: Settings, path: str) -> str:
    """The folder of the SAE in a zip, unpacked into the data folder; any other path unchanged.

    Raises `UserError` for a zip that cannot be used.
    """
    archive = user_path(path)
    if is_on_hub(path) or not is_archive(archive):
        return path
    return str(unpacked(archive, settings.data_dir / FOLDER))


def remove_unpacked(settings: Settings, path: str, in_use: Iterable[str]) -> None:
    """Remove the folder around `path` if it was unpacked from a zip and holds none of the SAEs
    `in_use`; importing the zip again unpacks it again.
    """
    if is_on_hub(path):
        return
    folder = unpacked_folder(user_path(path), settings.data_dir / FOLDER)
    if folder is None:
        return
    used = (os.path.realpath(user_path(other)) for other in in_use if not is_on_hub(other))
    if not any(Path(other).is_relative_to(folder) for other in used):
        shutil.rmtree(folder, ignore_errors=True)


def import_request(body: ImportCreate) -> RunCreate:
    """The request for a run that evaluates and indexes an SAE.

    Raises `ConfigError` unless the model and the place are given or found, and `UserError` for an
    SAE whose files are needed to find them and cannot be read.
    """
    config = by_section(body.config)
    model = config.get("model", {})
    for field, given in (
        ("name", body.model),
        ("layer", body.layer),
        ("site", body.site),
        ("hook_point", body.hook_point),
        ("hook_io", body.hook_io),
    ):
        if given is not None:
            model = model | {field: given}
    model = with_found(model, body.path, body.format)
    return RunCreate(
        preset=body.preset,
        config=with_pretrained(config | {"model": model}, body.path, body.format),
        name=body.name or name_of(body.path),
        tags=body.tags,
        notes=body.notes,
    )


def with_found(
    model: dict[str, Any], path: str, format: PretrainedFormat | None = None
) -> dict[str, Any]:
    """The section `model` with what it lacks, from the SAE's files. Raises as `import_request`."""
    has_place = model.get("layer") is not None or bool(model.get("hook_point"))
    if has_place and model.get("name"):
        return model
    found = describe(path, format)
    if not has_place and not found.place.is_named:
        reads = f"It was trained on {found.place.name}: {found.place.remedy}."
        ask = "Give the layer that the SAE reads, or its hook_point."
        raise ConfigError.of("layer", reads if found.place.name else ask)
    if not model.get("name") and not found.model_name:
        raise ConfigError.of("model", "The SAE's files do not name its language model; give it.")
    place = {} if has_place else found.place.settings
    name = {} if model.get("name") else {"name": found.model_name}
    return place | model | name


def found_sae(path: str) -> FoundSAE:
    """What the files of the SAE at `path` say about it; raises `UserError`."""
    found = describe(path)
    place = found.place
    return FoundSAE(
        path=path,
        name=name_of(path),
        format=found.format,
        model=found.model_name,
        layer=place.layer,
        site=place.site,
        hook_point=place.hook_point,
        hook_io=place.hook_io,
        place=place.name,
        remedy=place.remedy if place.name and not place.is_named else None,
        notes=found.notes,
    )


def with_pretrained(
    config: dict[str, Any], path: str, format: PretrainedFormat | None = None
) -> dict[str, Any]:
    """Overrides that select the SAE at `path`; its size comes from the file, not from a preset."""
    sae = {"pretrained": path, "d_sae": None, "expansion_factor": None}
    if format is not None:
        sae["pretrained_format"] = format
    return config | {"sae": config.get("sae", {}) | sae}


def name_of(path: str) -> str:
    """Default name of an imported SAE: that of its folder, or its place on the hub."""
    if is_on_hub(path):
        name = HubName.parse(path)
        repository = name.repository.partition("/")[2]
        return "/".join(filter(None, [repository, name.path]))[:200]
    here = Path(path)
    if here.suffix and here.parent.name == FOLDER:  # uploaded
        return here.stem[:200]
    folder = here.parent if here.suffix else here
    return (folder.name or here.name)[:200]
