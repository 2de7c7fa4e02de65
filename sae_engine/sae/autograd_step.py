"""One optimizer step of a TopK SAE, in two ways that give the same: autograd, for any device, and
compiled kernels, for the CPU. A third, for GPUs, is `triton_step`.

Used by `trainer`, which decides what the loss is made of and what is reported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.kernels.adam import BETA1, BETA2, EPSILON, AdamState
from sae_engine.kernels.cpu.step import Codes, CpuKernels, Reconstruction, Rest
from sae_engine.kernels.memory import settle_
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import auxk_loss, total_variance
from sae_engine.sae.stepper import Dead, Objective, Outcome, Stepper, k_auxk

_log = logging.getLogger(__name__)


def open_stepper(sae: TopKSAE) -> Stepper:
    """The fastest way to train `sae` where it lies."""
    device = sae.W_dec.device
    if device.type == "cpu":
        return CompiledStepper(sae)
    if device.type == "cuda" and find_spec("triton"):
        from sae_engine.sae.triton_step import TritonStepper

        search = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
        obstacle = find_obstacle(device, partial(TritonStepper, search=search))
        if obstacle is None:
            return TritonStepper(sae, search)
        _log.warning("Steps take the slower way, because Triton does not work here: %s", obstacle)
    return AutogradStepper(sae)


def find_obstacle(device: torch.device, new_stepper: Callable[[TopKSAE], Stepper]) -> str | None:
    """Why another way of doing steps is not to be trusted on a device, if it is not: it raises, or
    two steps of a small SAE with dead latents come out other than autograd's.

    A device may be too old for Triton, or there may be no C compiler, with which it builds, once on
    a machine, its link to the driver.
    """
    n, d_in, d_sae = 32, 48, 96
    x = torch.randn(n, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    dead = Dead.of(torch.arange(8, device=device), d_sae)
    objective = Objective(float(d_in), 1 / 32, 0.01, 1.0, normalize_decoder=True)

    def trained(new: Callable[[TopKSAE], Stepper]) -> Tensor:
        sae = TopKSAE(d_in, d_sae, k=4).to(device)
        sae.initialize_(0, torch.zeros(d_in, device=device))
        stepper = new(sae)
        for _ in range(2):
            stepper.step(x, objective, dead, lr=1e-3)
        return torch.cat([p.detach().flatten() for p in sae.parameters()])

    try:
        # Adam makes a whole step of a gradient that is nothing but rounding; such are few.
        same = torch.isclose(trained(new_stepper), trained(AutogradStepper), rtol=1e-4, atol=1e-5)
        agreement = same.float().mean().item()
    except Exception as error:  # whatever compilers and drivers raise
        return f"{type(error).__name__}: {error}"
    return None if agreement > 0.99 else f"{1 - agreement:.0%} of a trial step's result is wrong"


def auxk(
    sae: TopKSAE,
    W_dec: Float[Tensor, "D d_in"],
    W_enc: Float[Tensor, "D d_in"],
    b_enc: Float[Tensor, " D"],
    x: Float[Tensor, "n d_in"],
    x_hat: Float[Tensor, "n d_in"],
) -> Float[Tensor, ""]:
    """The dead latents' own loss (`loss.auxk_loss`), from the given rows of theirs.

    For each token the d_in / 2 strongest take part. The gradient reaches those rows and nothing
    else: the decoder's bias takes no part, neither in the reconstruction nor, as a constant, in the
    encoder.
    """
    pre = torch.addmm(b_enc, x - sae.b_dec.detach(), W_enc.T)
    acts = torch.relu(pre)
    k_aux = k_auxk(sae.d_in)
    if len(W_dec) > k_aux:
        scores = pre.detach() * W_dec.detach().norm(dim=1)
        chosen = scores.topk(k_aux, dim=-1, sorted=False).indices
        acts = acts * torch.zeros_like(pre).scatter(-1, chosen, 1.0)
    return auxk_loss(x - x_hat, acts @ W_dec)


class AutogradStepper:
    """The readable way: a dense forward pass, autograd, `torch.optim.Adam`."""

    def __init__(self, sae: TopKSAE) -> None:
        self._sae = sae
        self._optimizer = torch.optim.Adam(
            sae.parameters(), betas=(BETA1, BETA2), eps=EPSILON, fused=True
        )

    def step(
        self, x: Float[Tensor, "n d_in"], objective: Objective, dead: Dead, lr: float
    ) -> Outcome:
        sae = self._sae
        code = sae.encode(x)
        x_hat = sae.decode(code)
        loss = (x - x_hat).pow(2).sum(-1).mean() / objective.variance
        loss = loss + objective.l1_lambda * code.acts.sum(-1).mean()
        auxiliary = x.new_zeros(())
        latents = dead.latents()
        if len(latents) and objective.auxk_alpha:
            auxiliary = auxk(
                sae, sae.W_dec[latents], sae.encoder_rows[latents], sae.b_enc[latents], x, x_hat
            )
            loss = loss + objective.auxk_alpha * auxiliary
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if objective.normalize_decoder:
            sae.remove_parallel_gradient_()
        grad_norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), objective.grad_clip)
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        if objective.normalize_decoder:
            sae.normalize_decoder_()
        return Outcome(
            (x - x_hat).detach(), code.acts.detach(), code.indices, auxiliary.detach(), grad_norm
        )

    def state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._sae.named_parameters():
            state = self._optimizer.state[parameter]
            tensors |= {f"{name}.mean": state["exp_avg"], f"{name}.square": state["exp_avg_sq"]}
            tensors["step"] = state["step"]
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._sae.named_parameters():
            self._optimizer.state[parameter] = {
                "step": tensors["step"].clone(),
                "exp_avg": tensors[f"{name}.mean"].clone(),
                "exp_avg_sq": tensors[f"{name}.square"].clone(),
            }


class CompiledStepper:
    """The fast way on a CPU: see `kernels.cpu`."""

    def __init__(self, sae: TopKSAE) -> None:
        self._sae = sae
        settle_(sae)
        self._kernels = CpuKernels(sae.W_dec.detach(), sae.encoder_rows.detach(), sae.k)
        self._adam = AdamState(sae)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "n d_in"], objective: Objective, dead: Dead, lr: float
    ) -> Outcome:
        sae, kernels = self._sae, self._kernels
        centered = x - sae.b_dec
        latents = dead.latents()
        if len(latents) and objective.auxk_alpha:
            k_aux = min(k_auxk(sae.d_in), len(latents))
            codes, of_dead = kernels.encode_with_dead(centered, sae.b_enc, latents, k_aux)
        else:
            codes, of_dead = kernels.encode(centered, sae.b_enc), None
        rest = kernels.compare(codes, centered)
        factor = -2 / (len(x) * objective.variance)
        code = Reconstruction(codes, rest, factor, objective.l1_lambda / len(x))
        residual_sum = rest.residual.sum(0)
        auxiliary, auxk = self._auxk(of_dead, rest, residual_sum, objective.auxk_alpha)
        found = kernels.gradients(centered, code, auxk, normalize=objective.normalize_decoder)
        b_enc_grad = found.code_bias_grads + found.auxk_bias_grads
        decoded_grad = factor * residual_sum  # b_dec's, but for what comes by centering the inputs
        most = decoded_grad.norm() + found.centering_bound
        grad_norm, clip = _norm(found.norm_bound, b_enc_grad, most), 1.0
        dec = self._adam.moments["W_dec"]
        enc = dec if sae.tied else self._adam.moments["W_enc"]
        if objective.wants_norm or grad_norm > objective.grad_clip:
            squares, centering = kernels.squared_norm(found)
            grad_norm = _norm(squares**0.5, b_enc_grad, decoded_grad - centering)
            clip = min(1.0, objective.grad_clip / (grad_norm + 1e-6))
        self._adam.steps += 1
        centering = kernels.update(found, dec, enc, clip=clip, lr=lr, step=self._adam.steps)
        self._update_bias("b_enc", b_enc_grad * clip, lr)
        self._update_bias("b_dec", (decoded_grad - centering) * clip, lr)
        return Outcome(rest.residual, codes.acts, codes.indices, auxiliary, torch.tensor(grad_norm))

    def _auxk(
        self, codes: Codes | None, rest: Rest, residual_sum: Tensor, alpha: float
    ) -> tuple[Tensor, Reconstruction | None]:
        """`auxk`, and what the dead latents' codes make of the residual."""
        n = len(rest.residual)
        variance = 0.0 if codes is None else variance_of(rest, residual_sum)
        if codes is None or variance == 0:
            return torch.zeros(()), None
        left = self._kernels.compare(codes, rest.residual)
        # `loss.auxk_loss` and its gradient
        loss = float(np.square(left.norms, dtype=np.float64).sum()) / (n * variance)
        return torch.tensor(loss), Reconstruction(codes, left, -2 * alpha / (n * variance), 0.0)

    def _update_bias(self, name: str, gradient: Tensor, lr: float) -> None:
        mean, square = self._adam.moments[name]
        steps = self._adam.steps
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = square.sqrt().div_(math.sqrt(1 - BETA2**steps)).add_(EPSILON)
        self._sae.get_parameter(name).addcdiv_(mean, root, value=-lr / (1 - BETA1**steps))

    def state(self) -> dict[str, Tensor]:
        return self._adam.tensors()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._adam.load(tensors)


def _norm(rows: float, *biases: Tensor) -> float:
    """The norm of a gradient from that of its rows and its other parts."""
    return math.hypot(rows, *(bias.norm().item() for bias in biases))


def variance_of(rest: Rest, residual_sum: Tensor) -> float:
    """`loss.total_variance` of the residual, from its norms where its mean is not all there is."""
    n = len(rest.norms)
    mean_square = float(np.square(rest.norms, dtype=np.float64).sum()) / n
    variance = mean_square - float((residual_sum.double() / n).square().sum())
    return variance if variance > 0.01 * mean_square else total_variance(rest.residual).item()
