"""Checks of run configurations that come over REST, before a run is queued.

Called by `routes`; the configuration itself is validated by `sae_engine.presets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from backend.http.services import Services
from backend.settings import Settings
from sae_engine.errors import ConfigError
from sae_engine.files import looks_like_path, usable_paths, user_path
from sae_engine.hub import is_on_hub
from sae_engine.interop.files import local_settings
from sae_engine.preflight import check_config, check_hub
from sae_engine.schema.config import RunConfig
from sae_engine.text.paths import dataset_files, is_local_dataset


def check_runnable(services: Services, configs: Iterable[RunConfig]) -> None:
    """Raise `ConfigError` for the first configuration that cannot be run on this server."""
    places = services.supervisor.places([])
    configs = list(configs)
    for config in configs:
        check_paths(services, config)
        check_config(config)
        places.require(config.model.device)
    check_hub(configs)


def check_paths(services: Services, config: RunConfig) -> None:
    """Raise `ConfigError` if a local file of the configuration, links resolved, lies outside the
    data folder and `SAE_WORKBENCH_READ_DIRS`.
    """
    _require_readable(services.settings, _local_files(config))


def check_sae_path(services: Services, path: str) -> None:
    """Raise `ConfigError` if a file of the SAE at `path` is outside those folders."""
    _require_readable(services.settings, _sae_files("path", path))


def _require_readable(settings: Settings, files: Iterable[tuple[str, Path]]) -> None:
    with usable_paths():
        _require_allowed(settings, files)


def _require_allowed(settings: Settings, files: Iterable[tuple[str, Path]]) -> None:
    allowed = [root.resolve() for root in (settings.data_dir, *settings.read_dirs)]
    for field, path in files:
        if not any(path.resolve().is_relative_to(root) for root in allowed):
            raise ConfigError.of(
                field,
                f"'{path}' is not in a folder that this server may read; move it to the data "
                f"folder '{settings.data_dir}' or add its folder to SAE_WORKBENCH_READ_DIRS.",
            )


def _local_files(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """The files and folders that a run would read, each with the field that names it."""
    model = user_path(config.model.name)
    if looks_like_path(config.model.name) or model.exists():
        yield "model.name", model
        for file in model.iterdir() if model.is_dir() else ():
            yield "model.name", file
    for data in config.data.datasets:
        if is_local_dataset(data.dataset):
            yield "data.dataset", user_path(data.dataset)
            for file in dataset_files(data).paths:
                yield "data.dataset", file
    if config.data.activations is not None:
        yield from _all_files("data.activations", user_path(config.data.activations))
    if config.sae.pretrained is not None:
        yield from _sae_files("sae.pretrained", config.sae.pretrained)


def _sae_files(field: str, given: str) -> Iterator[tuple[str, Path]]:
    if is_on_hub(given):
        return
    path = user_path(given)
    yield from _all_files(field, path)
    for file in local_settings(path if path.is_dir() else path.parent):
        yield field, file


def _all_files(field: str, path: Path) -> Iterator[tuple[str, Path]]:
    yield field, path
    for file in path.rglob("*") if path.is_dir() else ():
        yield field, file
