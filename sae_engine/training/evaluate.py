"""Metrics of an SAE on held-out text.

Fed by `activations.heldout` and `model.language_model`; read by `training.run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import SpliceModel
from sae_engine.progress import Part, result_of
from sae_engine.sae.autoencoders import SAE
from sae_engine.sae.inference import Rows, open_coder
from sae_engine.sae.loss import ROUNDING
from sae_engine.schema.features import DENSE_FRACTION
from sae_engine.schema.records import TOP_TOKENS
from sae_engine.sizes import TOKENS_PER_FORWARD

TOKENS_PER_CHUNK = 4096
NO_EFFECT = 1e-6
"""Cross-entropy in nats per token below which a difference is rounding."""


@torch.inference_mode()
def reconstruction_metrics(
    sae: SAE,
    activations: Rows,
    check_stop: CheckStop = never_stop,
) -> dict[str, float]:
    """`eval_fvu`, `eval_l0`, `eval_cosine_similarity`, `frac_alive`, `frac_dense` and
    `top_token_share` over the whole set.

    `sae` reads raw activations (see `SAE.folded`). Sums are in float64 and independent of the chunk
    size. `eval_fvu` and `top_token_share` are NaN if all activations are the same.
    """
    device, coder = sae.W_dec.device, open_coder(sae)
    n = len(activations)

    def parts() -> Iterator[Tensor]:
        for first in range(0, n, TOKENS_PER_CHUNK):
            check_stop()
            yield activations[first : first + TOKENS_PER_CHUNK].to(device).float()

    total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    for x in parts():
        total += x.double().sum(0)
    mean = total / n
    error = torch.zeros((), dtype=torch.float64, device=device)
    active, cosine = error.clone(), error.clone()
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    distances: list[Tensor] = []
    for x in parts():
        code, x_hat = coder.reconstruct(x)
        error += (x - x_hat).double().pow(2).sum()
        distances.append((x.double() - mean).pow(2).sum(1))
        cosine += cosine_similarity(x, x_hat, dim=-1).double().sum()
        active += (code.acts > 0).sum()
        fired += torch.bincount(code.indices[code.acts > 0], minlength=sae.d_sae)
    distance = torch.cat(distances)
    variance = distance.sum().item()
    is_constant = variance <= ROUNDING * n * mean.pow(2).sum().item()
    farthest = distance.topk(math.ceil(n * TOP_TOKENS)).values.sum().item()
    return {
        "eval_fvu": math.nan if is_constant else error.item() / variance,
        "eval_l0": (active / n).item(),
        "eval_cosine_similarity": (cosine / n).item(),
        "frac_alive": (fired > 0).double().mean().item(),
        "frac_dense": (fired > DENSE_FRACTION * n).double().mean().item(),
        "top_token_share": math.nan if is_constant else farthest / variance,
    }


def cross_entropy_metrics(
    model: SpliceModel,
    sae: SAE,
    ids: Int[Tensor, "rows ctx"],
    mean: Float[Tensor, " d_in"],
    *,
    hook: int = 0,
    at: Bool[Tensor, "rows ctx"] | None = None,
) -> dict[str, float]:
    """`ce_delta` in nats per token; `ce_loss_score` and `ce_loss_score_mean` relative to zero and
    mean ablation, NaN where the ablation changes nothing.

    `sae` is spliced in at the positions `at` of hook number `hook`, by default all but BOS, pad and
    eos; `mean` is the mean activation there. Averages are over the predictions made there.
    """
    return result_of(measure_cross_entropy(model, sae, ids, mean, hook=hook, at=at))


def measure_cross_entropy(
    model: SpliceModel,
    sae: SAE,
    ids: Int[Tensor, "rows ctx"],
    mean: Float[Tensor, " d_in"],
    check_stop: CheckStop = never_stop,
    *,
    hook: int = 0,
    at: Bool[Tensor, "rows ctx"] | None = None,
) -> Generator[Part, None, dict[str, float]]:
    """Return `cross_entropy_metrics`, and yield the progress meanwhile."""
    coder = open_coder(sae)
    replacements: dict[str, Callable[[Tensor], Tensor] | None] = {
        "plain": None,
        "spliced": lambda x: coder.reconstruct(x)[1],
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x).expand_as(x),
    }
    sums = dict.fromkeys(replacements, 0.0)
    count = done = 0
    rows = max(1, TOKENS_PER_FORWARD // ids.shape[1])
    num_forwards = len(replacements) * math.ceil(len(ids) / rows)
    for first in range(0, len(ids), rows):
        part = ids[first : first + rows]
        positions = None if at is None else at[first : first + rows]
        for name, replace in replacements.items():
            check_stop()
            done += 1
            yield Part(done, num_forwards)
            loss, num_predictions = model.cross_entropy(part, replace, hook, positions)
            sums[name] += loss
        count += num_predictions
    plain, spliced, zero, at_mean = (sums[name] / count for name in replacements)
    delta = spliced - plain
    return {
        "ce_delta": delta,
        "ce_loss_score": _score(delta, zero - plain),
        "ce_loss_score_mean": _score(delta, at_mean - plain),
    }


def _score(delta: float, ablated: float) -> float:
    """Share of an ablation's damage that a reconstruction avoids."""
    return 1 - delta / ablated if abs(ablated) > NO_EFFECT else math.nan
