"""One optimizer step of a TopK SAE on a GPU, by Triton kernels and without a dense gradient.
Tested against `autograd_step`.

Needs Triton, which comes with CUDA builds of PyTorch, so it is imported only where it is used. The
host never waits for the device: counts, norms and the clipping factor stay there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.kernels.adam import AdamStep
from sae_engine.kernels.gpu import codes as triton_codes
from sae_engine.kernels.gpu import rows as triton_rows
from sae_engine.kernels.gpu.rows import PairSums, RowGradients, Weights
from sae_engine.kernels.gpu.select import Codes, best_of, select
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import total_variance
from sae_engine.sae.stepper import DeadLatents, KernelStepper, StepOutcome, StepSettings, k_auxk

DENSE_SCORES = 2**26
"""About how many pre-activations exist at a time; tokens are encoded in parts."""
DEAD_BLOCK = 1024
"""Dead latents whose pre-activations are computed together. A fixed size, so that rounding does not
depend on `DeadLatents.max_count`.
"""

Search = Literal["float32", "bfloat16"]


def margin(k: int) -> int:
    """How many candidates a bfloat16 search finds beyond k."""
    return max(16, k // 2)


class AuxK(NamedTuple):
    """The dead latents' own loss (`loss.auxk_loss`) and alpha times its gradients."""

    loss: Float[Tensor, ""]
    codes: Codes
    out_grad: Float[Tensor, "n d_in"]
    """With respect to the decoded codes."""


class TritonStepper(KernelStepper):
    """The fast stepper on a GPU; its kernels are in `kernels.gpu`.

    With `search="float32"` the latents are exactly those of the reference. With "bfloat16", tensor
    cores find a few more than k candidates from a bfloat16 copy of the encoder, and the best k are
    chosen by their float32 values. Activations are float32 either way.
    """

    def __init__(
        self,
        sae: TopKSAE,
        search: Search = "float32",
        *,
        dense_scores: int = DENSE_SCORES,
        dead_block: int = DEAD_BLOCK,
    ) -> None:
        super().__init__(sae)
        self._tokens_at_once = max(1, dense_scores // sae.d_sae)
        self._dead_block = dead_block
        self._shadow: Tensor | None = None
        """bfloat16 copy of the encoder, which the update keeps current."""
        if search == "bfloat16":
            self._shadow = torch.empty_like(sae.encoder_rows, dtype=torch.bfloat16)
        self._seen_version = -1

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "n d_in"], settings: StepSettings, dead: DeadLatents, lr: float
    ) -> StepOutcome:
        sae, n, x = self._sae, len(x), x.contiguous()
        with _on(x.device):
            norms = sae.decoder_norms
            centered = x - sae.b_dec
            codes = self._encode(centered, norms)
            x_hat = triton_codes.decode(codes, sae.W_dec.detach()).add_(sae.b_dec)
            residual = x - x_hat
            x_hat_grad = residual * (-2 / (n * settings.variance))
            parts = [(codes, x_hat_grad, settings.l1_lambda / n)]
            auxiliary = x.new_zeros(())
            if dead.max_count and settings.auxk_alpha:
                aux = self._auxk(residual, centered, norms, settings.auxk_alpha, dead)
                parts.append((aux.codes, aux.out_grad, 0.0))
                auxiliary = aux.loss
            found = self._gradients(parts, centered)
            if settings.normalize_decoder:
                found = triton_rows.without_parallel(found, sae.W_dec.detach(), norms)
            sums = triton_rows.sum_pairs(found)
            b_dec_grad = x_hat_grad.sum(0) - sums.code_bias_grads @ sae.encoder_rows
            grad_norm = self._grad_norm(found, sums, b_dec_grad, settings)
            clip = (settings.grad_clip / (grad_norm + 1e-6)).clamp_max(1.0)
            self._update(found, sums.bias_grads, b_dec_grad, clip, lr)
            if settings.normalize_decoder:
                sae.normalize_decoder_()
        return StepOutcome(residual, codes.acts, codes.indices, auxiliary, grad_norm)

    def _encode(self, centered: Tensor, norms: Tensor) -> Codes:
        """Codes of x - b_dec, as `TopKSAE.code_of` defines them."""
        sae, encoder = self._sae, self._sae.encoder_rows.detach()
        bias, shadow = sae.b_enc.detach(), self._shadow
        if shadow is not None and encoder._version != self._seen_version:  # set from outside
            shadow.copy_(encoder)
            self._seen_version = encoder._version

        def part(centered: Tensor) -> Codes:
            if shadow is None:
                return select(centered @ encoder.T, bias, norms, sae.k)
            width = min(sae.k + margin(sae.k), sae.d_sae)
            dots = _products(centered.bfloat16(), shadow)
            indices = select(dots, bias, norms, width).indices
            counts = indices.new_full((len(indices),), width)
            pre = triton_codes.gather_dot(centered, encoder, indices, counts, bias=bias)
            return best_of(pre, indices, counts, norms, sae.k)

        return self._by_parts(part, centered)

    def _by_parts(self, encode: Callable[[Tensor], Codes], centered: Tensor) -> Codes:
        """Codes of all tokens, encoded in parts."""
        parts = [encode(c) for c in centered.split(self._tokens_at_once)]
        return Codes(*map(torch.cat, zip(*parts, strict=True))) if parts[1:] else parts[0]

    def _auxk(
        self, residual: Tensor, centered: Tensor, norms: Tensor, alpha: float, dead: DeadLatents
    ) -> AuxK:
        sae = self._sae
        # Dead latents first; the live ones that fill the last block are never chosen.
        size = -(-dead.max_count // self._dead_block) * self._dead_block
        latents = dead.mask.byte().argsort(descending=True, stable=True)[:size]
        is_alive = ~dead.mask[latents]
        bias = sae.b_enc.detach()[latents].masked_fill_(is_alive, -math.inf)
        norms = norms[latents].masked_fill_(is_alive, 1.0)
        k_aux = min(k_auxk(sae.d_in), dead.max_count)
        encoder = sae.encoder_rows.detach()

        def part(centered: Tensor) -> Codes:
            dots = [centered @ encoder[block].T for block in latents.split(self._dead_block)]
            return select(torch.cat(dots, 1), bias, norms, k_aux)

        codes = self._by_parts(part, centered)
        codes = codes._replace(indices=latents.int()[codes.indices])
        error = triton_codes.decode(codes, sae.W_dec.detach()).sub_(residual)
        variance = total_variance(residual)
        counts = dead.mask.any() & (variance > 0)
        tiny = torch.finfo(variance.dtype).tiny
        weight = counts / (len(error) * variance.clamp_min(tiny))
        return AuxK(error.square().sum() * weight, codes, error * (2 * alpha * weight))

    def _gradients(
        self, parts: list[tuple[Codes, Tensor, float]], centered: Tensor
    ) -> RowGradients:
        """Gradients of the rows, from `parts`: codes, the gradient with respect to what they decode
        to, and a constant added to the gradient of every activation.
        """
        W_dec = self._sae.W_dec.detach()
        pairs = triton_rows.sort_pairs(
            [
                (codes, triton_codes.gather_dot(grad, W_dec, codes.indices, codes.kept, added=more))
                for codes, grad, more in parts
            ],
            len(W_dec),
        )
        out_grads = [grad for _, grad, _ in parts]
        out_grad = torch.cat(out_grads) if out_grads[1:] else out_grads[0]
        return RowGradients(pairs, out_grad, centered, self._sae.tied)

    def _grad_norm(
        self, found: RowGradients, sums: PairSums, b_dec_grad: Tensor, settings: StepSettings
    ) -> Float[Tensor, ""]:
        """The whole gradient's norm, or an upper bound that shows that nothing is clipped."""
        biases = sums.bias_grads.square().sum() + b_dec_grad.square().sum()
        bound = sums.square_bounds.sum() + biases
        needed = bound > settings.grad_clip**2
        if settings.wants_norm:
            needed = torch.ones_like(needed)
        elif math.isinf(settings.grad_clip):
            return bound.sqrt()
        squares = triton_rows.squared_norms(found, self._sae.W_dec.detach(), needed)
        return torch.where(needed, squares.sum() + biases, bound).sqrt()

    def _update(
        self, found: RowGradients, b_enc_grad: Tensor, b_dec_grad: Tensor, clip: Tensor, lr: float
    ) -> None:
        self._adam.steps += 1
        adam = AdamStep.at(self._adam.steps, lr=lr, clip=clip)
        dec = self._weights("W_dec")
        enc = dec if self._sae.tied else self._weights("W_enc")
        triton_rows.update(found, dec, enc, self._shadow, adam)
        triton_rows.update_vector(b_enc_grad, self._weights("b_enc"), adam)
        triton_rows.update_vector(b_dec_grad, self._weights("b_dec"), adam)

    def _weights(self, name: str) -> Weights:
        return Weights(self._sae.get_parameter(name).detach(), *self._adam.moments[name])


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Launches kernels on the device inside."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _products(
    a: Float[Tensor, "n d_in"], b: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "n d_sae"]:
    """Dot products of bfloat16 rows, summed and returned in float32."""
    if a.device.type == "cuda":
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T
