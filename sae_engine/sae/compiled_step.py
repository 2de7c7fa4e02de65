"""One optimizer step of a TopK SAE on a CPU, by compiled kernels (`kernels.cpu`) and without a
dense gradient. Tested against `autograd_step`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.kernels.adam import BETA1, BETA2, EPSILON
from sae_engine.kernels.cpu.step import Codes, CpuKernels, Reconstruction, Rest
from sae_engine.kernels.memory import settle_
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import total_variance
from sae_engine.sae.stepper import DeadLatents, KernelStepper, StepOutcome, StepSettings, k_auxk


class CompiledStepper(KernelStepper):
    """The fast stepper on a CPU."""

    def __init__(self, sae: TopKSAE) -> None:
        settle_(sae)
        super().__init__(sae)
        self._kernels = CpuKernels(sae.W_dec.detach(), sae.encoder_rows.detach(), sae.k)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "n d_in"], settings: StepSettings, dead: DeadLatents, lr: float
    ) -> StepOutcome:
        sae, kernels = self._sae, self._kernels
        centered = x - sae.b_dec
        latents = dead.latents()
        if len(latents) and settings.auxk_alpha:
            k_aux = min(k_auxk(sae.d_in), len(latents))
            codes, dead_codes = kernels.encode_with_dead(centered, sae.b_enc, latents, k_aux)
        else:
            codes, dead_codes = kernels.encode(centered, sae.b_enc), None
        rest = kernels.compare(codes, centered)
        factor = -2 / (len(x) * settings.variance)  # dL/d(decoded) = factor * residual
        code = Reconstruction(codes, rest, factor, settings.l1_lambda / len(x))
        residual_sum = rest.residual.sum(0)
        auxiliary, auxk = self._auxk(dead_codes, rest, residual_sum, settings.auxk_alpha)
        found = kernels.gradients(centered, code, auxk, normalize=settings.normalize_decoder)
        b_enc_grad = found.code_bias_grads + found.auxk_bias_grads
        decoded_grad = factor * residual_sum  # b_dec's, except for its part in centering the inputs
        b_dec_bound = decoded_grad.norm() + found.centering_bound
        grad_norm, clip = _norm(found.norm_bound, b_enc_grad, b_dec_bound), 1.0
        dec = self._adam.moments["W_dec"]
        enc = dec if sae.tied else self._adam.moments["W_enc"]
        if settings.wants_norm or grad_norm > settings.grad_clip:
            squares, centering = kernels.squared_norm(found)
            grad_norm = _norm(squares**0.5, b_enc_grad, decoded_grad - centering)
            clip = min(1.0, settings.grad_clip / (grad_norm + 1e-6))
        self._adam.steps += 1
        centering = kernels.update(found, dec, enc, clip=clip, lr=lr, step=self._adam.steps)
        self._update_bias("b_enc", b_enc_grad * clip, lr)
        self._update_bias("b_dec", (decoded_grad - centering) * clip, lr)
        return StepOutcome(
            rest.residual, codes.acts, codes.indices, auxiliary, torch.tensor(grad_norm)
        )

    def _auxk(
        self, codes: Codes | None, rest: Rest, residual_sum: Tensor, alpha: float
    ) -> tuple[Tensor, Reconstruction | None]:
        """`loss.auxk_loss` of the dead latents' codes, and their reconstruction of the residual."""
        n = len(rest.residual)
        variance = 0.0 if codes is None else variance_of(rest, residual_sum)
        if codes is None or variance == 0:
            return torch.zeros(()), None
        left = self._kernels.compare(codes, rest.residual)
        loss = float(np.square(left.norms, dtype=np.float64).sum()) / (n * variance)
        return torch.tensor(loss), Reconstruction(codes, left, -2 * alpha / (n * variance), 0.0)

    def _update_bias(self, name: str, gradient: Tensor, lr: float) -> None:
        mean, square = self._adam.moments[name]
        steps = self._adam.steps
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = square.sqrt().div_(math.sqrt(1 - BETA2**steps)).add_(EPSILON)
        self._sae.get_parameter(name).addcdiv_(mean, root, value=-lr / (1 - BETA1**steps))


def _norm(rows: float, *biases: Tensor) -> float:
    """A gradient's norm, from the norm of its rows and its other parts."""
    return math.hypot(rows, *(bias.norm().item() for bias in biases))


def variance_of(rest: Rest, residual_sum: Tensor) -> float:
    """`loss.total_variance` of the residual, from its norms unless its mean nearly cancels them."""
    n = len(rest.norms)
    mean_square = float(np.square(rest.norms, dtype=np.float64).sum()) / n
    variance = mean_square - float((residual_sum.double() / n).square().sum())
    return variance if variance > 0.01 * mean_square else total_variance(rest.residual).item()
