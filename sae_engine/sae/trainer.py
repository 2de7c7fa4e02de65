"""Trains one SAE, batch by batch of activations. Knows no language model, text or files.

Fed by `training.run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import fvu, geometric_median, total_variance
from sae_engine.sae.stepper import DeadLatents, StepOutcome, Stepper, StepSettings
from sae_engine.sae.stepper_choice import open_stepper
from sae_engine.schema.config import SAEConfig, TrainConfig

STEPS_PER_COUNT = 32
"""Maximum number of steps between two counts of the latents that may be dead."""


class StepMetrics(NamedTuple):
    """Metrics of one step on its batch: scalars, still on the device."""

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    l0: Float[Tensor, ""]
    auxk_loss: Float[Tensor, ""]
    l1_loss: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]


class StepResult(NamedTuple):
    """A step's scaled batch and what was computed on it."""

    x: Float[Tensor, "n d_in"]
    outcome: StepOutcome
    settings: StepSettings

    def metrics(self) -> StepMetrics:
        x, outcome, settings = self.x, self.outcome, self.settings
        l1 = outcome.acts.sum(-1).mean()
        error = outcome.residual.pow(2).sum(-1).mean() / settings.variance
        return StepMetrics(
            loss=error + settings.auxk_alpha * outcome.auxk + settings.l1_lambda * l1,
            fvu=fvu(x, outcome.residual),
            l0=(outcome.acts > 0).float().sum(-1).mean(),
            auxk_loss=outcome.auxk,
            l1_loss=l1,
            grad_norm=outcome.grad_norm,
        )


class Budget(NamedTuple):
    """Length of a run, resolved from its configuration."""

    total_steps: int
    total_tokens: int


def default_lr(d_in: int, d_sae: int, total_steps: int) -> float:
    """Peak learning rate for a width and a budget.

    Long runs use `2e-4 / sqrt(d_sae / 2**14)`, as sparsify does, after Gao et al. 2024. Runs
    shorter than 100,000 steps multiply it by (100,000 / total_steps)^0.4, up to the rate at which
    one step moves a coordinate of a unit row, 1 / sqrt(d_in), by a tenth. Measurements:
    `benchmarks/LOG.md`.
    """
    long_run = 2e-4 / math.sqrt(d_sae / 2**14)
    return min(0.1 / math.sqrt(d_in), long_run * max(1.0, (100_000 / total_steps) ** 0.4))


def scheduled_lr(config: TrainConfig, peak: float, step: int, total_steps: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    warm_up = min(config.warmup_steps, total_steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    left = (total_steps - step) / total_steps
    if config.lr_schedule == "linear_decay":
        return peak * min(1.0, left / 0.2)
    if config.lr_schedule == "cosine":
        return peak * 0.5 * (1 - math.cos(math.pi * left))
    return peak


def dead_threshold(config: TrainConfig, budget: Budget) -> int:
    """Tokens without firing after which a latent is dead.

    Gao et al. 2024 use 10M in runs of billions of tokens. Shorter runs use a share of their length,
    so that AuxK takes effect: see `benchmarks/LOG.md`.
    """
    return config.dead_feature_threshold or min(10_000_000, max(1, budget.total_tokens // 128))


class SAETrainer:
    """Trains one TopK SAE on scaled activations with Adam.

    loss = |x - x_hat|^2 / Var + auxk_alpha auxk + l1_lambda mean |z|_1, with x the input times
    `scale` (unit mean square) and Var its variance, both fixed from the first activations. The
    `stepper` computes the steps; the default is the fastest on the SAE's device.
    """

    def __init__(
        self,
        sae: TopKSAE,
        shape: SAEConfig,
        config: TrainConfig,
        budget: Budget,
        stepper: Stepper | None = None,
    ) -> None:
        self.sae = sae
        self.config = config
        self.budget = budget
        self.stepper = stepper or open_stepper(sae)
        self.peak_lr = config.lr or default_lr(sae.d_in, sae.d_sae, budget.total_steps)
        self.dead_threshold = dead_threshold(config, budget)
        self.since_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        """Tokens since each latent last fired."""
        self._most_dead = 0
        """Upper bound on the number of dead latents within the next `_foreseen_tokens`."""
        self._foreseen_tokens = -1
        self._seen_version = -1
        """Of `since_fired` after the last step, to notice changes from outside."""
        self.scale = 1.0
        self.variance = 1.0
        self.steps_done = 0
        self._normalize_decoder = shape.normalize_decoder

    def fit_input_(self, x: Float[Tensor, "n d_in"], seed: int) -> None:
        """Fix scale and variance from the first activations and initialize the SAE at their
        geometric median.
        """
        x = x.float()
        self.scale = (1 / x.pow(2).mean().sqrt().clamp_min(1e-12)).item()
        scaled = x * self.scale
        self.variance = max(total_variance(scaled).item(), 1e-12)
        self.sae.initialize_(seed, geometric_median(scaled[:8192]))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that steps change, not copied: `since_fired`, the parameters as `sae.*` and,
        after the first step, Adam's state as `adam.*`.
        """
        tensors = {"since_fired": self.since_fired}
        tensors |= {f"sae.{name}": p.detach() for name, p in self.sae.named_parameters()}
        if self.steps_done:
            tensors |= {f"adam.{name}": t for name, t in self.stepper.state().items()}
        return tensors

    @torch.no_grad()
    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` of another trainer into this one."""
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[f"sae.{name}"])
        self.since_fired.copy_(tensors["since_fired"])
        adam = {n.removeprefix("adam."): t for n, t in tensors.items() if n.startswith("adam.")}
        if adam:
            self.stepper.load_state(adam)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return scheduled_lr(self.config, self.peak_lr, self.steps_done, self.budget.total_steps)

    @property
    def frac_dead(self) -> float:
        return (self.since_fired > self.dead_threshold).float().mean().item()

    def step(self, batch: Float[Tensor, "n d_in"], *, measured: bool = True) -> StepResult:
        """Take one optimizer step on raw activations; `measured` if its metrics will be read."""
        x = batch.float() * self.scale
        settings = StepSettings(
            variance=self.variance,
            auxk_alpha=self.config.auxk_alpha,
            l1_lambda=self.config.l1_lambda,
            grad_clip=self.config.grad_clip or math.inf,
            normalize_decoder=self._normalize_decoder,
            wants_norm=measured,
        )
        outcome = self.stepper.step(x, settings, self._dead(len(x)), self.lr)
        self.since_fired += len(x)
        self._foreseen_tokens -= len(x)
        self.since_fired.masked_fill_(self._fired(outcome), 0)
        self._seen_version = self.since_fired._version
        self.steps_done += 1
        return StepResult(x, outcome, settings)

    def _dead(self, num_tokens: int) -> DeadLatents:
        """The dead latents before a step on `num_tokens` tokens.

        Their upper bound is counted for many steps at a time, because counting waits for the
        device.
        """
        if self._foreseen_tokens < 0 or self.since_fired._version != self._seen_version:
            self._foreseen_tokens = min(STEPS_PER_COUNT * num_tokens, self.dead_threshold // 8)
            soon = self.since_fired > self.dead_threshold - self._foreseen_tokens
            self._most_dead = int(soon.sum())
        return DeadLatents(self.since_fired > self.dead_threshold, self._most_dead)

    def _fired(self, outcome: StepOutcome) -> Bool[Tensor, " d_sae"]:
        """Which latents are active on the batch."""
        d_sae = self.sae.d_sae
        fired = torch.zeros(d_sae + 1, dtype=torch.bool, device=outcome.acts.device)
        latents = outcome.indices.masked_fill(~(outcome.acts > 0), d_sae).flatten()
        return fired.index_fill_(0, latents.long(), True)[:d_sae]
