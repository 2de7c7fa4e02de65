"""Terms of the loss and metrics of a reconstruction, as pure functions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-12
"""Variance over mean square below which differences between float32 vectors are rounding."""


def total_variance(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared distance from the mean, summed over coordinates."""
    return (x - x.mean(0)).square().sum() / len(x)


def fvu(x: Float[Tensor, "n d"], residual: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained: sum |residual|^2 / sum |x - mean x|^2, with
    residual = x - x_hat. NaN if all rows are the same.
    """
    variance = (x - x.mean(0)).pow(2).sum()
    defined = variance > ROUNDING * x.pow(2).sum()
    return torch.where(defined, residual.pow(2).sum() / variance, math.nan)


def auxk_loss(
    residual: Float[Tensor, "n d"], residual_hat: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Squared error of the dead latents' reconstruction of the residual, over the residual's
    variance; Gao et al. 2024, appendix A.2.

    `residual` is treated as a constant. A residual without variance gives 0, not NaN.
    """
    residual = residual.detach()
    variance = total_variance(residual)
    error = (residual - residual_hat).pow(2).sum(-1).mean()
    return torch.where(
        variance > 0, error / variance.clamp_min(torch.finfo(variance.dtype).tiny), 0.0
    )


def geometric_median(
    x: Float[Tensor, "n d"], *, max_iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d"]:
    """The point with the smallest sum of distances to the rows of `x`, by Weiszfeld's iteration
    from their mean.
    """
    x = x.float()
    median = x.mean(0)
    for _ in range(max_iterations):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        moved = (weights @ x) / weights.sum()
        if (moved - median).norm() <= tolerance * median.norm().clamp_min(tolerance):
            return moved
        median = moved
    return median
