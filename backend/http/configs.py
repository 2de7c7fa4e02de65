"""Checks of run configurations that come over REST, before a run is queued.

Called by `routes`; the configuration itself is validated by `sae_engine.presets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from backend.http.services import Services
from sae_engine.errors import ConfigError
from sae_engine.preflight import check_config
from sae_engine.schema.config import RunConfig
from sae_engine.text.local_files import dataset_files
from sae_engine.text.sources import is_local_dataset


def check_runnable(services: Services, configs: Iterable[RunConfig]) -> None:
    """Raise `ConfigError` for the first configuration that cannot be run on this server."""
    places = services.supervisor.places([])
    for config in configs:
        check_paths(services, config)
        check_config(config)
        places.require(config.model.device)


def check_paths(services: Services, config: RunConfig) -> None:
    """Raise `ConfigError` if a local file of the configuration, links resolved, lies outside the
    data folder and `SAE_WORKBENCH_READ_DIRS`.
    """
    settings = services.settings
    allowed = [root.resolve() for root in (settings.data_dir, *settings.read_dirs)]
    for field, path in _local_files(config):
        if not any(path.resolve().is_relative_to(root) for root in allowed):
            raise ConfigError.of(
                field,
                f"'{path}' lies outside the folders that runs may read; move it to the data folder "
                "or add its folder to SAE_WORKBENCH_READ_DIRS.",
            )


def _local_files(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """The files and folders that a run would read, each with the field that names it."""
    model = Path(config.model.name).expanduser()
    if config.model.name.startswith(("/", "./", "../", "~")) or model.exists():
        yield "model.name", model
        for file in model.iterdir() if model.is_dir() else ():
            yield "model.name", file
    for data in config.data.datasets:
        dataset = Path(data.dataset)
        if is_local_dataset(data):
            yield "data.dataset", dataset.expanduser()
            for file in dataset_files(data):
                yield "data.dataset", file
        elif dataset.exists():
            yield "data.dataset", dataset
    for field, given in (
        ("data.activations", config.data.activations),
        ("sae.pretrained", config.sae.pretrained),
    ):
        if given is not None:
            path = Path(given).expanduser()
            yield field, path
            for file in path.rglob("*") if path.is_dir() else ():
                yield field, file
