"""The interface of one optimizer step: what it is given, what it returns.

Called by `trainer`; implemented by `autograd_step`, `compiled_step` and `triton_step`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_engine.kernels.adam import AdamState
from sae_engine.sae.autoencoders import TopKSAE


class StepSettings(NamedTuple):
    """loss = |x - x_hat|^2 / variance + auxk_alpha auxk + l1_lambda mean |z|_1, and how its
    gradient is treated.
    """

    variance: float
    auxk_alpha: float
    l1_lambda: float
    grad_clip: float
    """Largest norm of the whole gradient; infinite never clips."""
    normalize_decoder: bool
    """Keep decoder rows at unit norm, and remove the gradient's part along them."""
    wants_norm: bool = True
    """Whether to report the gradient's exact norm; otherwise an upper bound is enough if it
    proves that nothing is clipped.
    """


class DeadLatents(NamedTuple):
    """The latents that have not fired for so long that AuxK trains them."""

    mask: Bool[Tensor, " d_sae"]
    max_count: int
    """An upper bound on their number, known without waiting for the device."""

    @staticmethod
    def of(latents: Int[Tensor, " D"], d_sae: int) -> DeadLatents:
        """The latents with the given indices."""
        mask = torch.zeros(d_sae, dtype=torch.bool, device=latents.device)
        return DeadLatents(mask.index_fill_(0, latents.long(), True), len(latents))

    def latents(self) -> Int[Tensor, " D"]:
        """Their indices, ascending; waits for the device."""
        return self.mask.nonzero().squeeze(-1)


class StepOutcome(NamedTuple):
    """What a step computed on its batch with the weights before the update."""

    residual: Float[Tensor, "n d_in"]
    """x - x_hat"""
    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    auxk: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]
    """Before clipping; see `StepSettings.wants_norm`."""


@runtime_checkable
class Stepper(Protocol):
    """Holds an SAE's Adam state and takes its optimizer steps."""

    def step(
        self, x: Float[Tensor, "n d_in"], settings: StepSettings, dead: DeadLatents, lr: float
    ) -> StepOutcome: ...

    def state(self) -> dict[str, Tensor]:
        """Adam's state by parameter, as `W_dec.mean`, `W_dec.square`, and the `step` count."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


class KernelStepper:
    """Shared by steppers that compute gradients and Adam's update with their own kernels."""

    def __init__(self, sae: TopKSAE) -> None:
        self._sae = sae
        self._adam = AdamState(sae)

    def state(self) -> dict[str, Tensor]:
        return self._adam.tensors()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._adam.load(tensors)


def k_auxk(d_in: int) -> int:
    """How many dead latents reconstruct a token's residual; Gao et al. 2024, appendix A.2."""
    return max(1, d_in // 2)
