"""Checks of run configurations that come over REST, before a run is queued.

Called by `routes`; the configuration itself is validated by `sae_engine.presets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from backend.http.services import Services
from backend.jobs.imports import located, unzipped
from backend.jobs.texts import in_data_folder
from backend.settings import Settings
from sae_engine.errors import ConfigError
from sae_engine.files import looks_like_path, usable_paths, user_path
from sae_engine.hub import is_on_hub
from sae_engine.interop.files import hub_hint, local_settings
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


def with_local_files(services: Services, config: RunConfig) -> RunConfig:
    """The configuration with paths that are relative to the data folder as absolute ones, and with
    the unpacked folder of an SAE in a zip.

    Raises `ConfigError` for text that does not exist and an SAE that may not be read, and
    `UserError` for a zip that cannot be used.
    """
    config = in_data_folder(services.settings, config)
    if config.sae.pretrained is None:
        return config
    path = readable_sae(services, config.sae.pretrained, "sae.pretrained")
    sae = config.sae.model_copy(update={"pretrained": path})
    return config.model_copy(update={"sae": sae})


def readable_sae(services: Services, path: str, field: str = "path") -> str:
    """The path from which the engine reads the SAE at `path`. Raises as `with_local_files`."""
    settings = services.settings
    with usable_paths():
        found = located(settings, path)
        _require_allowed(settings, _sae_files(field, found))
        if (hint := hub_hint(path)) and not Path(found).exists():
            raise ConfigError.of(field, f"There is no SAE at '{found}'{hint}.")
        return unzipped(settings, found)


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
