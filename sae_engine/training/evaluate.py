"""Metrics of an SAE on held-out text.

Fed by `activations.heldout` and `model.language_model`; read by `training.run`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import SpliceModel
from sae_engine.sae.autoencoders import SAE
from sae_engine.sae.inference import open_coder
from sae_engine.schema.features import DENSE_FRACTION
from sae_engine.sizes import TOKENS_PER_FORWARD

TOKENS_PER_CHUNK = 4096


@torch.inference_mode()
def reconstruction_metrics(
    sae: SAE,
    activations: Float[Tensor, "n d_in"],
    check_stop: CheckStop = never_stop,
) -> dict[str, float]:
    """`eval_fvu`, `eval_l0`, `eval_cosine_similarity`, `frac_alive`, `frac_dense` over the whole
    set.

    `sae` reads raw activations (see `SAE.folded`). Sums are in float64 and independent of the chunk
    size.
    """
    device, coder = sae.W_dec.device, open_coder(sae)
    error = torch.zeros((), dtype=torch.float64, device=device)
    squares, active, cosine = error.clone(), error.clone(), error.clone()
    total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    # Squares are summed around the first chunk's mean, so a large common offset costs no precision.
    origin: Tensor | None = None
    for part in activations.split(TOKENS_PER_CHUNK):
        check_stop()
        x = part.to(device).float()
        code, x_hat = coder.reconstruct(x)
        origin = x.mean(0) if origin is None else origin
        centered = (x - origin).double()
        error += (x - x_hat).double().pow(2).sum()
        squares += centered.pow(2).sum()
        total += centered.sum(0)
        cosine += cosine_similarity(x, x_hat, dim=-1).double().sum()
        active += (code.acts > 0).sum()
        fired += torch.bincount(code.indices[code.acts > 0], minlength=sae.d_sae)
    n = len(activations)
    variance = squares - total.pow(2).sum() / n
    return {
        "eval_fvu": (error / variance).item(),
        "eval_l0": (active / n).item(),
        "eval_cosine_similarity": (cosine / n).item(),
        "frac_alive": (fired > 0).double().mean().item(),
        "frac_dense": (fired > DENSE_FRACTION * n).double().mean().item(),
    }


def cross_entropy_metrics(
    model: SpliceModel,
    sae: SAE,
    ids: Int[Tensor, "rows ctx"],
    mean: Float[Tensor, " d_in"],
    check_stop: CheckStop = never_stop,
    *,
    hook: int = 0,
) -> dict[str, float]:
    """`ce_delta` in nats per token; `ce_loss_score` and `ce_loss_score_mean` relative to zero and
    mean ablation.

    `sae` is spliced in at the ordinary positions of hook number `hook`, where `mean` is the mean
    activation. Averages are over the predictions made there.
    """
    coder = open_coder(sae)
    replacements: dict[str, Callable[[Tensor], Tensor] | None] = {
        "plain": None,
        "spliced": lambda x: coder.reconstruct(x)[1],
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x).expand_as(x),
    }
    sums = dict.fromkeys(replacements, 0.0)
    count = 0
    for part in ids.split(max(1, TOKENS_PER_FORWARD // ids.shape[1])):
        for name, replace in replacements.items():
            check_stop()
            loss, num_predictions = model.cross_entropy(part, replace, hook)
            sums[name] += loss
        count += num_predictions
    plain, spliced, zero, at_mean = (sums[name] / count for name in replacements)
    delta = spliced - plain
    return {
        "ce_delta": delta,
        "ce_loss_score": 1 - delta / (zero - plain),
        "ce_loss_score_mean": 1 - delta / (at_mean - plain),
    }
