"""Copies a run's metrics to TensorBoard and Weights & Biases. Fed by `run`."""

from __future__ import annotations

from typing import Protocol

from sae_engine.errors import ConfigError, cause_of
from sae_engine.files import RunFolder, published_file
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import MetricsRecord


class Tracker(Protocol):
    def log(self, record: MetricsRecord) -> None: ...
    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in the run's folder: one scalar per metric and step."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("train.tensorboard", "tensorboard") from None
        # TensorBoard forgets what earlier files say of these steps.
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)

    def log(self, record: MetricsRecord) -> None:
        for name, value in record.values.items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run, which takes its key and mode from `WANDB_*` variables."""

    def __init__(self, config: RunConfig, folder: RunFolder, step: int) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("train.wandb_project", "wandb") from None
        known = folder.wandb_id.read_text("utf-8") if step and folder.wandb_id.exists() else None
        try:
            self._run = wandb.init(
                id=known,
                resume="allow" if known else None,
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
        with published_file(folder.wandb_id) as path:
            path.write_text(self._run.id, "utf-8")

    def log(self, record: MetricsRecord) -> None:
        self._run.log({**record.values, "tokens": record.tokens}, step=record.step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(config: RunConfig, folder: RunFolder, step: int) -> list[Tracker]:
    """Open the configured trackers, often none, for a run that continues after `step`, 0 if it is
    new. Raises `ConfigError` if one cannot be used.
    """
    trackers: list[Tracker] = []
    if config.train.tensorboard:
        trackers.append(TensorBoardTracker(folder, step))
    if config.train.wandb_project:
        trackers.append(WandbTracker(config, folder, step))
    return trackers


def _missing(field: str, package: str) -> ConfigError:
    return ConfigError.of(
        field, f"The package {package} is not installed; run: pip install 'sae-workbench[tracking]'"
    )
