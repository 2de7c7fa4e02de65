"""The optimizer steps of one run. Taken by `run`, or by another process for it (see `spread`)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.activations.outliers import OutlierFilter
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.trainer import Budget, SAETrainer, StepResult
from sae_engine.schema.config import RunConfig


def new_trainer(config: RunConfig, d_in: int, budget: Budget, device: torch.device) -> SAETrainer:
    """Before `SAETrainer.fit_input_` or `load_`."""
    d_sae = config.sae.num_latents(d_in)
    sae = TopKSAE(d_in, d_sae, config.sae.k, tied=config.sae.tied_weights).to(device)
    return SAETrainer(sae, config.sae, config.train, budget)


class Steps:
    """Steps of a trainer on batches whose outliers are replaced."""

    def __init__(self, trainer: SAETrainer, ordinary: OutlierFilter) -> None:
        self.trainer = trainer
        self.ordinary = ordinary
        self._lr = 0.0
        self._result: StepResult | None = None

    def is_logged(self, step: int) -> bool:
        trainer = self.trainer
        is_last = step == trainer.budget.total_steps
        return step == 1 or is_last or step % trainer.config.log_every == 0

    def take(self, batch: Float[Tensor, "n d_in"], *, is_read: bool) -> None:
        """Take the next step; `is_read` if its metrics or the trainer's tensors will be read before
        the one after it.
        """
        trainer = self.trainer
        self._lr = trainer.lr
        is_logged = self.is_logged(trainer.steps_done + 1)
        result = trainer.step(self.ordinary(batch), measured=is_logged)
        self._result = result if is_logged else None

    def metrics(self) -> dict[str, float]:
        """Of the last step, which is logged; to be read once."""
        result, self._result = self._result, None
        assert result is not None, "this step is not logged"
        measured = result.metrics()._asdict().items()
        values: dict[str, float] = {name: value.item() for name, value in measured}
        values |= {"lr": self._lr, "frac_dead": self.trainer.frac_dead}
        values["outlier_tokens"] = self.ordinary.num_tokens
        return values

    def fetch(self) -> None:
        """Bring the trainer's tensors and the filter's count up to date. Nothing to do here."""
