"""Adam's constants and state for the steppers that do not use `torch.optim`.

Kingma and Ba 2015, arXiv 1412.6980. Used by `sae` and by the kernels of both devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_engine.kernels.memory import zeros_like

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """Adam's running means of a parameter's gradient and of its square."""

    mean: Tensor
    square: Tensor


class AdamStep(NamedTuple):
    """The scalars of one step of Adam."""

    clip: Any
    """Factor for the gradients: a float, or on a GPU a scalar tensor."""
    size: float
    """lr / (1 - beta1^t)"""
    root_correction: float
    """1 / sqrt(1 - beta2^t)"""
    beta1: float
    beta2: float
    epsilon: float

    @staticmethod
    def at(step: int, *, lr: float, clip: Any) -> AdamStep:
        """Step number `step`, counted from 1."""
        size, root_correction = lr / (1 - BETA1**step), (1 - BETA2**step) ** -0.5
        return AdamStep(clip, size, root_correction, BETA1, BETA2, EPSILON)


class AdamState:
    """The moments of a module's parameters, by name, and the number of steps taken."""

    def __init__(self, module: nn.Module) -> None:
        self.steps = 0
        self.moments = {
            name: Moments(zeros_like(p), zeros_like(p)) for name, p in module.named_parameters()
        }

    def tensors(self) -> dict[str, Tensor]:
        """The state as `Stepper.state` returns it."""
        device = next(iter(self.moments.values())).mean.device
        tensors = {"step": torch.tensor(float(self.steps), device=device)}
        for name, moments in self.moments.items():
            tensors |= {f"{name}.mean": moments.mean, f"{name}.square": moments.square}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.steps = int(tensors["step"])
        for name, moments in self.moments.items():
            moments.mean.copy_(tensors[f"{name}.mean"])
            moments.square.copy_(tensors[f"{name}.square"])
