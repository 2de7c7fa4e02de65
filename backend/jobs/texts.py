"""The data folder: names of uploaded files, and files that are named relative to the folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from backend.settings import Settings
from sae_engine.errors import ConfigError
from sae_engine.files import usable_paths
from sae_engine.schema.config import DataConfig, RunConfig
from sae_engine.text.paths import is_local_dataset
from sae_engine.text.stdlib import EMBEDDED_CORPUS

FOLDER = "texts"
"""Of uploaded files, in the data folder."""
MAX_NAME_BYTES = 200


def texts_folder(settings: Settings) -> Path:
    return settings.data_dir / FOLDER


def safe_name(given: str) -> str:
    """The last part of a file's name without what means something to a shell or a file system;
    empty if nothing is left.
    """
    last = PurePosixPath(given.replace("\\", "/")).name
    stem, dot, endings = re.sub(r"[^\w. -]+", "-", last).strip(" .-").partition(".")
    room = max(0, MAX_NAME_BYTES - len(f"{dot}{endings}".encode()))
    return f"{stem.encode()[:room].decode(errors='ignore')}{dot}{endings}"[:MAX_NAME_BYTES]


def in_data_folder(settings: Settings, config: RunConfig) -> RunConfig:
    """The configuration with datasets named relative to the data folder as absolute paths.

    Raises `ConfigError` for a path that exists neither there nor in the working directory.
    """
    data = config.data
    changes: dict[str, object] = {"dataset": _found(settings, data.dataset)}
    if data.mixture is not None:
        changes = {
            "mixture": tuple(
                part.model_copy(update={"dataset": _found(settings, part.dataset)})
                for part in data.mixture
            )
        }
    changed: DataConfig = data.model_copy(update=changes)
    return config.model_copy(update={"data": changed})


def _found(settings: Settings, name: str) -> str:
    if name == EMBEDDED_CORPUS:
        return name
    found = relative_to_data(settings, name)
    if found is None and is_local_dataset(name):
        raise ConfigError.of(
            "data.dataset",
            f"There is no file or folder '{name}' in the data folder '{settings.data_dir}', "
            "which paths are relative to.",
        )
    return found or name


def relative_to_data(settings: Settings, name: str) -> str | None:
    """The path of a file or folder that is named relative to the working directory or the data
    folder; None if it is in neither. Absolute paths stay as they are.
    """
    if name.startswith(("/", "~")):
        return name
    with usable_paths():
        inside = settings.data_dir / name
        if Path(name).exists():
            return name
        return str(inside) if inside.exists() else None
