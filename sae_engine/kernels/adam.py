"""Adam's constants, and its state where steps are done without `torch.optim`.

Used by `steps`, `triton_step` and `kernels.cpu`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_engine.kernels.memory import zeros_like

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """Adam's running means of a parameter's gradient and of its square."""

    mean: Tensor
    square: Tensor


class AdamState:
    """The moments of a module's parameters, by name, and how many steps were done."""

    def __init__(self, module: nn.Module) -> None:
        self.steps = 0
        self.moments = {
            name: Moments(zeros_like(p), zeros_like(p)) for name, p in module.named_parameters()
        }

    def tensors(self) -> dict[str, Tensor]:
        """What `objective.Stepper.state` gives."""
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
