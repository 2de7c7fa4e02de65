"""Copies a run's metrics to TensorBoard and Weights & Biases. Fed by `run`."""

from __future__ import annotations

from typing import Protocol

from sae_engine.errors import ConfigError, cause_of
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import MetricsRecord


class Tracker(Protocol):
    def log(self, record: MetricsRecord) -> None: ...
    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in the run's folder: one scalar per metric and step."""

    def __init__(self, folder: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("train.tensorboard", "tensorboard") from None
        self._writer = SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, record: MetricsRecord) -> None:
        for name, value in record.values.items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run, which takes its key and mode from `WANDB_*` variables."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("train.wandb_project", "wandb") from None
        try:
            self._run = wandb.init(
                project=config.train.wandb_project,
                name=config.name or None,
                dir=str(folder.path),
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise ConfigError.of(
                "train.wandb_project",
                f"Weights & Biases cannot be used: {cause_of(error)} Set WANDB_API_KEY, or "
                "WANDB_MODE=offline to keep its files in the run's folder.",
            ) from error

    def log(self, record: MetricsRecord) -> None:
        self._run.log({**record.values, "tokens": record.tokens}, step=record.step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(config: RunConfig, folder: RunFolder) -> list[Tracker]:
    """Open the configured trackers, often none; raises `ConfigError` if one cannot be used."""
    trackers: list[Tracker] = []
    if config.train.tensorboard:
        trackers.append(TensorBoardTracker(folder))
    if config.train.wandb_project:
        trackers.append(WandbTracker(config, folder))
    return trackers


def _missing(field: str, package: str) -> ConfigError:
    return ConfigError.of(
        field, f"The package {package} is not installed; run: pip install 'sae-workbench[tracking]'"
    )
