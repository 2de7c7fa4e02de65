"""One optimizer step of a TopK SAE by autograd, on any device: the readable reference for
`compiled_step` and `triton_step`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.kernels.adam import BETA1, BETA2, EPSILON
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import auxk_loss
from sae_engine.sae.stepper import DeadLatents, StepOutcome, StepSettings, k_auxk


def auxk(
    sae: TopKSAE,
    W_dec: Float[Tensor, "D d_in"],
    W_enc: Float[Tensor, "D d_in"],
    b_enc: Float[Tensor, " D"],
    x: Float[Tensor, "n d_in"],
    x_hat: Float[Tensor, "n d_in"],
) -> Float[Tensor, ""]:
    """The dead latents' own loss (`loss.auxk_loss`), from their rows of the weights.

    Each token uses its d_in / 2 strongest dead latents. The gradient reaches only the given rows:
    the decoder bias is left out of the reconstruction and is a constant in the encoder.
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
    """A dense forward pass, autograd, `torch.optim.Adam`."""

    def __init__(self, sae: TopKSAE) -> None:
        self._sae = sae
        self._optimizer = torch.optim.Adam(
            sae.parameters(), betas=(BETA1, BETA2), eps=EPSILON, fused=True
        )

    def step(
        self, x: Float[Tensor, "n d_in"], settings: StepSettings, dead: DeadLatents, lr: float
    ) -> StepOutcome:
        sae = self._sae
        code = sae.encode(x)
        x_hat = sae.decode(code)
        loss = (x - x_hat).pow(2).sum(-1).mean() / settings.variance
        loss = loss + settings.l1_lambda * code.acts.sum(-1).mean()
        auxiliary = x.new_zeros(())
        latents = dead.latents()
        if len(latents) and settings.auxk_alpha:
            auxiliary = auxk(
                sae, sae.W_dec[latents], sae.encoder_rows[latents], sae.b_enc[latents], x, x_hat
            )
            loss = loss + settings.auxk_alpha * auxiliary
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.normalize_decoder:
            sae.remove_parallel_gradient_()
        grad_norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), settings.grad_clip)
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        if settings.normalize_decoder:
            sae.normalize_decoder_()
        return StepOutcome(
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
