"""What an optimizer step is asked for and what it gives, however it is computed.

Used by `trainer`, which asks, and by `steps` and `triton_step`, which compute.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Objective(NamedTuple):
    """What the step minimizes: |x - x_hat|^2 / variance + auxk_alpha auxk + l1_lambda mean |z|_1,
    and how its gradient is treated.
    """

    variance: float
    auxk_alpha: float
    l1_lambda: float
    grad_clip: float
    """Largest norm of the whole gradient; infinite never clips."""
    normalize_decoder: bool
    wants_norm: bool = True
    """Whether the gradient's norm is to be reported; else it may be a bound that shows that
    nothing is clipped.
    """


class Dead(NamedTuple):
    """Which latents have not fired for so long that AuxK takes care of them."""

    mask: Bool[Tensor, " d_sae"]
    most: int
    """No fewer than the mask has; known without waiting for the device."""

    @staticmethod
    def of(latents: Int[Tensor, " D"], d_sae: int) -> Dead:
        """The latents with the given numbers."""
        mask = torch.zeros(d_sae, dtype=torch.bool, device=latents.device)
        return Dead(mask.index_fill_(0, latents.long(), True), len(latents))

    def latents(self) -> Int[Tensor, " D"]:
        """Their numbers, ascending; waits for the device."""
        return self.mask.nonzero().squeeze(-1)


class Outcome(NamedTuple):
    """What a step computed on its batch, before its update."""

    residual: Float[Tensor, "n d_in"]
    """x - x_hat"""
    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    auxk: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]
    """Before clipping; see `Objective.wants_norm`."""


@runtime_checkable
class Stepper(Protocol):
    """Holds an SAE's Adam state and does its steps."""

    def step(
        self, x: Float[Tensor, "n d_in"], objective: Objective, dead: Dead, lr: float
    ) -> Outcome: ...

    def state(self) -> dict[str, Tensor]:
        """Adam's state by parameter, as `W_dec.mean`, `W_dec.square`, and the `step` count."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


def k_auxk(d_in: int) -> int:
    """How many dead latents rebuild a token's residual; Gao et al. 2024, appendix A.2."""
    return max(1, d_in // 2)
